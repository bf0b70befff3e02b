"""A recipe in words: its stages as a column, each parameter's bits, expected bytes.

Everything is computed from shapes: no array is made, no device is used.
"""

import dataclasses
import functools
import inspect
import math
import re
from typing import Any, NamedTuple

from bitflax import distillation, files, model, packed, quantization
from bitflax.data import HubDataset, Task, named_task, shown
from bitflax.errors import BitflaxError, ConfigError
from bitflax.progress import columns
from bitflax.recipe import schema
from bitflax.recipe.duration import planned_optim, planned_steps
from bitflax.recipe.schema import Init, Recipe, Stage, Teacher, check_plan
from bitflax.types import BertConfig, Optim

_ARROW = "      |\n      v"


class _Size(NamedTuple):
    """What the length of a training depends on.

    Attributes:
      rows: the examples of an epoch, those of an augmentation file too.
      plain: those without augmentation.
      classes: how many the task has; 0: a real number.
    """

    rows: int
    plain: int
    classes: int


def _classes(task: Task, config: BertConfig | None) -> int:
    """Return how many classes a task has: texts without labels have the teacher's."""
    if task.regression:
        return 0
    return len(task.labels) or (config.num_labels if config else 0)


def teacher_config(
    of: Recipe, task: Task | None = None
) -> tuple[BertConfig | None, str]:
    """Return the configuration of a recipe's teacher and the folder that has it.

    Only local folders and installed packages are read. Where there is none, as for a
    model on a hub, the configuration is None and the text says why. A teacher that is
    still to be fine-tuned has the classes of its ``task``.
    """
    labels = None
    if of.data is not None and of.teacher.folder is None:
        if task is not None:
            labels = max(1, len(task.labels))
        elif named := named_task(of.data.task):
            labels = max(1, named.classes)
    return _config(of.teacher.model, labels)


def _config(name: str, labels: int | None) -> tuple[BertConfig | None, str]:
    if "/" in name and not files.given(name).is_dir():
        return None, f"{name} is no folder here; `bitflax run` asks the hub for it"
    try:
        folder = model.resolve_folder(name)
        path = folder / "config.json"
        fields = files.read_json(path)
        config = model.config_from_hf(fields, num_labels=labels, place=path)
        return config, str(folder)
    except BitflaxError as error:
        return None, f"{error.problem} ({error.fix})"


def student_config(of: Recipe, teacher: BertConfig) -> BertConfig:
    """Return the last student's configuration: what each ``init`` makes of the teacher.

    Raises:
      ConfigError: a stage takes what is not there, or starts from a folder that is not
        here.
    """
    config = teacher
    for stage in of.stages:
        init, place = stage.init, f"Stage {stage.name!r}.init"
        if init.source not in ("previous", "teacher"):
            found, where = _config(init.source, teacher.num_labels)
            if found is None:
                fix = "give a model's folder"
                raise ConfigError(f"{place}.source", where, fix=fix)
            config = found
        config = teacher if init.source == "teacher" else config
        config = init.config(config, place)
    return config


def describe_recipe(
    of: Recipe,
    config: BertConfig | None = None,
    task: Task | None = None,
    taught: Task | None = None,
) -> str:
    """Return a recipe in words: data, teacher and stages, drawn as a column.

    Args:
      of: the recipe.
      config: the teacher's configuration; with it, the text has each parameter's bits
        and the expected bytes of the packed file.
      task: the data that students learn, where they were read.
      taught: those that the teacher learns, where they differ (augmentation).

    Raises:
      ConfigError: a rule matches no parameter, a layer is not there, or a training's
        patience can never end it early.
    """
    check_plan(of)
    size = None
    if task is not None:
        rows, plain = len(task.train), len((taught or task).train)
        edits = of.data is not None and of.data.augment == "edits"
        size = _Size(plain if edits else rows, plain, _classes(task, config))
    blocks = [*_data(of, task, size), _teacher(of, config, size)]
    blocks += [_stage(i, stage, of, size) for i, stage in enumerate(of.stages)]
    if of.stages and of.stages[-1].packs:
        blocks.append(f"model.safetensors  packed; the rest as {_rest(of.rest)}")
    text = f"\n{_ARROW}\n".join(blocks)
    if config is None or not of.stages:
        return text
    return f"{text}\n\n{_sizes(of, config)}"


def _rest(rest: packed.Rest) -> str:
    if isinstance(rest, str):
        return rest
    return ", ".join([*(f"{kind} {regex}" for regex, kind in rest), "int8"])


def _rows(title: str, rows: list[str]) -> str:
    return "\n".join(
        [f"{title:<9}  {rows[0]}", *(f"{'':<9}  {row}" for row in rows[1:])]
    )


def _data(of: Recipe, task: Task | None, size: _Size | None) -> list[str]:
    data = of.data
    if data is None:
        return []
    task_name = data.task if isinstance(data.task, str) else shown(data.task)
    first = f"{task_name}: at most {data.max_length} tokens, {data.batch_size} a batch"
    rows = [first + (f", {data.limit} examples" if data.limit else "")]
    if data.data_dir:
        rows.append(f"from {data.data_dir}")
    if task is None or size is None:
        rows += [f"augmented by {data.augment}"] if data.augment else []
    else:
        kinds = "real numbers" if task.regression else f"{size.classes} classes"
        read = f"{size.plain:,} examples to learn from, {len(task.dev):,} to "
        rows.append(f"{read}measure {task.metric} on; {kinds}")
        if data.augment:
            more = len(task.train) - size.plain
            rows.append(f"students learn {more:,} more, of {data.augment}")
        rows += [line for note in task.notes for line in note.splitlines()]
    return [_rows("data", rows)]


def _teacher(of: Recipe, config: BertConfig | None, size: _Size | None) -> str:
    teacher = of.teacher
    if teacher.folder or of.data is None:
        rows = [f"{teacher.model}, as it is"]
    else:
        taught = size and size._replace(rows=size.plain)
        length = _schedule(teacher, of.data.batch_size, taught)
        rows = [f"{teacher.pretrained}, fine-tuned: {length}"]
    if config:
        heads = f"{config.num_attention_heads} heads"
        wide = f"{config.hidden_size} wide, {heads}"
        values = sum(
            math.prod(entry.shape) for entry in model.parameter_entries(config)
        )
        rows.append(f"{config.num_hidden_layers} layers, {wide}, {values:,} parameters")
    return _rows("teacher", rows)


def _schedule(part: Stage | Teacher, batch: int, size: _Size | None) -> str:
    """Return the length and the learning rate of a teacher's or a stage's training."""
    optim: Optim = part.optim
    length, lr = "as many steps as suit the data", optim.lr
    if size is not None:
        each, own = -(-size.rows // batch), -(-size.plain // batch)
        steps = planned_steps(part, each, own, size.classes)
        length = f"{_count(steps, 'step')} ({_count(round(steps / each, 1), 'epoch')})"
        lr = planned_optim(part, size.classes).lr if isinstance(part, Teacher) else lr
    elif part.steps is not None:
        length = _count(part.steps, "step")
    elif part.epochs is not None:
        length = _count(part.epochs, "epoch")
    if part.patience is not None:
        length += f", or until {_count(part.patience, 'evaluation')} brought no gain"
    held = f", frozen {', '.join(optim.frozen)}" if optim.frozen else ""
    named = "that suits the data," if lr is None else f"{lr:g}"
    rate = f"lr {named} {optim.schedule}, {optim.warmup:.0%} warm-up"
    return f"{length}, {rate}{held}"


def _count(number: int | float, noun: str) -> str:
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 's'}"


def _stage(index: int, stage: Stage, of: Recipe, size: _Size | None) -> str:
    source, untaught = stage.init.source, f"{of.teacher.pretrained}, not fine-tuned"
    first = "teacher" if stage.corpus is None else untaught
    if source == "previous":
        source = of.stages[index - 1].name if index else first
    source = first if source == "teacher" else source
    rows = [f"starts from {source}{_made(stage.init)}"]
    if stage.corpus is not None:
        corpus = stage.corpus
        rows.append(f"text        {corpus.source}: pieces of {corpus.length} tokens")
    teacher = stage.teacher if stage.corpus is None else untaught
    if teacher != "teacher":
        rows.append(f"taught by   {teacher}")
    rows += _loss_rows(stage.loss)
    rows += _weight_rows(stage.rules)
    rows += _act_rows(stage.act)
    rows += _compute_rows(stage)
    batch = stage.batch_size or (of.data.batch_size if of.data else 0)
    length = _schedule(stage, batch, size if stage.corpus is None else None)
    each = f", {batch} a batch" if stage.batch_size else ""
    kept = "best" if stage.patience else stage.keep
    rows.append(f"{length}{each}; the {kept} parameters are kept")
    return _rows(stage.name, rows)


def _made(init: Init) -> str:
    """Return in words what ``init`` makes of the model that a stage starts from."""
    text = ""
    if init.layers is not None:
        text = f", its layers {', '.join(map(str, init.layers))}"
    if init.shape is not None:
        shape = init.shape
        text = f"; {shape.num_hidden_layers} layers, {shape.hidden_size} wide, random"
    if init.width is not None:
        text += f"; the {init.width[0]} heads and {init.width[1]} neurons of each layer"
        text += " that matter most"
    return text + "; each ternary matrix split in two" if init.split else text


def _loss_rows(loss: Any) -> list[str]:
    if not isinstance(loss, distillation.Weighted):
        return [f"loss        {function_name(loss)}"]
    rows = []
    for name, (weight, fn) in loss.parts.items():
        head = "loss" if not rows else "  +"
        rows.append(f"{head:<11} {weight:g} x {name}: {function_name(fn)}")
    return rows


def _weight_rows(rules: quantization.Rules) -> list[str]:
    rows = []
    for regex, quantizer in rules:
        bits = quantization.bits_of(quantizer)
        name = function_name(quantizer)
        rows.append(f"weights     {'?' if bits is None else bits} bit  {regex}  {name}")
    return rows or ["weights     32 bit"]


def _act_rows(act: Any) -> list[str]:
    if act is None:
        return ["activations 32 bit"]
    if callable(act):
        return [f"activations {getattr(act, 'bits', '?')} bit  {act}"]
    return [
        f"activations {getattr(fn, 'bits', '?')} bit  {site}  {fn}" for site, fn in act
    ]


def _precision(dtype: str | None) -> str:
    if dtype == "auto":
        return "bfloat16 where the device multiplies it natively, else float32"
    return dtype or "float32"


def _compute_rows(stage: Stage) -> list[str]:
    """Return what a stage computes with, where that is not the default."""
    rows = []
    if stage.dtype or stage.teacher_dtype:
        names = [_precision(dtype) for dtype in (stage.dtype, stage.teacher_dtype)]
        both = "{}, the teacher's {}" if len({*names}) > 1 else "{}"
        rows.append(f"products    {both.format(*names)}")
    if stage.accumulate > 1:
        rows.append(f"gradients   added up over {stage.accumulate} parts of a batch")
    if stage.recompute:
        rows.append("layers      computed again in the backward pass")
    return rows


def _sizes(of: Recipe, config: BertConfig) -> str:
    """Return the table of the last stage's parameters, equal layers on one line."""
    stage, student = of.stages[-1], student_config(of, config)
    rest = of.rest if stage.packs else "float32"
    kept = min(of.positions or math.inf, student.max_position_embeddings)
    student = dataclasses.replace(student, max_position_embeddings=int(kept))
    split = [stage.init.split for stage in of.stages if stage.init.split]
    place = f"Stage {stage.name!r}.rules"
    halved = split[-1] if split else ()
    lines = packed.parameter_bits(stage.rules, student, rest, halved, place)
    groups: dict[tuple, list[packed.ExpectedSize]] = {}
    for line in lines:
        path = re.sub(r"layer_\d+", "layer_*", line.path)
        groups.setdefault((path, line.shape, line.bits), []).append(line)
    head = ("bits", f"{'values':>12}", f"{'bytes':>12}")
    rows: list[tuple[str, ...]] = [(*head, f"parameter (after {stage.name})")]
    for (path, shape, bits), members in groups.items():
        values = math.prod(shape) * len(members)
        size = sum(line.size for line in members)
        times = f" x {len(members)}" if len(members) > 1 else ""
        name = f"{path} {list(shape)}{times}"
        rows.append((f"{bits or '?'}", f"{values:,}", f"{size:,}", name))
    total = sum(line.size for line in lines)
    full = 4 * sum(math.prod(entry.shape) for entry in model.parameter_entries(config))
    values = sum(math.prod(line.shape) for line in lines)
    rows.append(("", f"{values:,}", f"{total:,}", "total, without the tokenizer"))
    smaller = f"{full / total:.1f} times smaller than the teacher's"
    expected = f"expected: {total / 1e6:.2f} MB, {smaller} {full / 1e6:.1f} MB"
    return f"{columns(rows, '>>><')}\n{expected}"


# These are written without a "kind": their place in the recipe says what they are.
_OWN = {
    schema.Recipe,
    schema.Stage,
    schema.Init,
    schema.Shape,
    schema.Data,
    schema.Teacher,
    schema.Corpus,
    Optim,
}


def resolved(node: Any) -> Any:
    """Return a recipe, or a part of one, as JSON-able data.

    Functions are written by name, a data set in memory by its columns and the number
    of its rows. The same recipe gives the same data in every process, so that a resumed
    run can tell whether its recipe has changed.

    >>> resolved(schema.Corpus(length=64, source="a.txt"))["length"]
    64
    """
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        kind = type(node)
        parts = {
            f.name: resolved(getattr(node, f.name))
            for f in dataclasses.fields(node)
            if "later" not in f.metadata or getattr(node, f.name) != f.default
        }
        return parts if kind in _OWN else {"kind": kind.__name__, **parts}
    if isinstance(node, HubDataset):
        return shown(node)
    if isinstance(node, dict):
        return {str(key): resolved(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [resolved(item) for item in node]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    return function_name(node)


def function_name(fn: Any) -> str:
    """Return a function with its bound arguments as text, the same in every process.

    >>> function_name(functools.partial(round, ndigits=2))
    'round(ndigits=2)'
    """
    if isinstance(fn, functools.partial):
        bound = [_shown(arg) for arg in fn.args]
        bound += [
            f"{key}={_shown(value)}" for key, value in sorted(fn.keywords.items())
        ]
        return f"{function_name(fn.func)}({', '.join(bound)})"
    fn = inspect.unwrap(fn)
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    if not inspect.isfunction(fn) or not fn.__closure__:
        return name
    held = inspect.getclosurevars(fn).nonlocals
    bound = [f"{key}={_shown(value)}" for key, value in sorted(held.items())]
    return f"{name}({', '.join(bound)})"


def _shown(value: Any) -> str:
    # By name alone: a function that refers to itself would never end.
    if inspect.isfunction(value):
        return value.__qualname__
    shown = resolved(value)
    return shown if callable(value) and isinstance(shown, str) else repr(shown)
