"""What each subcommand of ``bitflax`` does; ``bitflax.cli`` parses and tells errors."""

import contextlib
import inspect
import logging
import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitflax import data, inference, model, packed, recipe, runs, training
from bitflax.data import augmentation
from bitflax.errors import (
    DamagedFile,
    InputMissing,
    OutputError,
    StorageError,
    UsageError,
)
from bitflax.files import disk, given, write_text
from bitflax.inference import native
from bitflax.progress import columns, tell, throughput

_LOG = logging.getLogger(__name__)

BASES = {"binary": 2, "ternary": 3}


def ls_command(args: Namespace) -> None:
    """Print the recipes and the named tasks."""
    print("recipes")
    found = recipe.recipe_files().items()
    _print_pairs({name: recipe.recipe_summary(path) for name, path in found})
    print("\ntasks")
    _print_pairs({name: task.about for name, task in data.TASKS.items()})
    print("\nor a path: a recipe's .py, a task's .tsv, .csv or .jsonl")


def _print_pairs(pairs: Mapping[str, str]) -> None:
    if pairs:
        print(columns([("", *pair) for pair in pairs.items()], "<<<"))


def show_command(args: Namespace) -> None:
    """Print a recipe's docstring, data, dials, stages, bits and expected bytes."""
    file = recipe.read_recipe(args.recipe)
    made = file.build(args.settings)
    taught, task = _read(made)
    config, where = recipe.teacher_config(made, task)
    text = recipe.describe_recipe(made, config, task, taught)
    print(f"{file.path}\n\n{file.doc}\n\ndials (--set NAME=VALUE)")
    _print_pairs({name: _dial(default) for name, (_, default) in file.dials.items()})
    print(f"\n{text}")
    if config is None:
        print(f"\nbits and bytes need the teacher's shape: {where}")


def _read(made: recipe.Recipe) -> tuple[data.Task, data.Task] | tuple[None, None]:
    """Return what a recipe's teacher learns, and its students; none of a download."""
    if made.data is None:
        return None, None
    named, task = data.named_task(made.data.task), made.data.task
    far = named.dataset if named else isinstance(task, str) and data.is_hub_data(task)
    if far and made.data.data_dir is None:
        return None, None
    ready = made.teacher.folder is not None
    known = recipe.teacher_config(made)[0] if ready else None
    return runs.read_task(made.data, known, ready=ready)


def _dial(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "(has to be given)"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if default in (None, True, False) else str(default)


def tune_command(args: Namespace) -> None:
    """Run a recipe with each of several settings, or go on with it."""
    file = recipe.read_recipe(args.recipe)
    plan = (args.settings, args.over, args.seeds, args.until)
    trials = runs.make_trials(file, *plan)
    training.initialize(args.coordinator, args.processes, args.process)
    runs.run_trials(file, trials, args.out, args.until)


def report_command(args: Namespace) -> None:
    """Draw the page of a finished run anew, or one of several runs side by side."""
    out = args.out
    if out is None and runs.several(args.runs):
        out = runs.COMPARISON
    print(runs.draw_report(args.runs, None if out is None else _new_file(out, ".html")))


def run_command(args: Namespace) -> None:
    """Run a recipe, or go on with it; once a seed where ``--seeds`` says so."""
    if args.seeds is not None:
        if args.fork is not None:
            fix = "leave one of them out: runs of other seeds have nothing in common"
            raise UsageError("--seeds", "does not go with --fork", fix=fix)
        return tune_command(Namespace(**vars(args) | {"over": []}))
    file = recipe.read_recipe(args.recipe)
    made = file.build(args.settings)
    recipe.check_plan(made, args.until)
    # A mistyped command is told at once, and not when the other processes have come.
    training.initialize(args.coordinator, args.processes, args.process)
    runs.run(
        made,
        args.out,
        until=args.until,
        source=file.source,
        overrides=tuple(args.settings),
        fork=args.fork,
    )


def clean_command(args: Namespace) -> None:
    """Remove what only a resume needs of a finished run; print how much that was."""
    size = runs.clean(args.run)
    print(f"{args.run}\t{size / 1e6:,.1f} MB removed: checkpoints and cache")


@training.compiled_for_user()
def eval_command(args: Namespace) -> None:
    """Print a model's scores on a task's dev examples; of an own file, on all.

    Of classes: each one's precision, recall and F1, and what it is taken for.
    """
    read = (name for name in (args.model, args.task, args.dev) if name)
    out = None if args.out is None else _new_file(args.out, ".jsonl", *read)
    named, dev = args.task in data.TASKS, args.dev
    many = named or data.is_hub_data(args.task) or given(args.task).is_dir()
    if dev is None and not many:
        dev = args.task
    predictor = inference.load(args.model, args.engine, args.threads)
    config, known = predictor.config, {}
    if not named:  # the model knows which classes there are, and in which order
        known["regression"] = config.regression
        if not config.regression and config.id2label is not None:
            known["classes"] = config.labels
    task = data.load_task(
        args.task,
        data_dir=args.data_dir,
        text=_columns(args.text),
        label=args.label,
        dev=dev,
        labelled=True,
        **known,
    )
    for note in task.notes:
        tell(note)
    if data.is_hub_data(args.task) and not data.has_dev(task):
        problem = f"{args.task} has no validation split, and its train was learnt from"
        raise UsageError(
            "--dev", problem, fix="name the split to measure on: --dev test"
        )
    with throughput(len(task.dev), "eval") as done:
        found = predictor.evaluate(task, done=done)
    print(found.table())
    if out is not None:
        write_text(out, "".join(f"{line}\n" for line in found.lines()))
        _LOG.info("%s: %s examples, a line each", out, len(task.dev))


def _new_file(name: str, kind: str, *read: str) -> Path:
    """Return the path of a page or of lines of JSON, new or one of ours before.

    Raises:
      OutputError: it is named otherwise or holds something else, it is a folder, its
        own folder is not there, or it is one of the files that are ``read``.
    """
    out = given(name, OutputError)
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a folder" if out.is_dir() else "its folder is not there"
        raise OutputError(out, problem, fix="name a file in a folder that is there")
    if out.suffix != kind:
        problem = f"expected a name that ends with {kind}, found {out.name!r}"
        raise OutputError(out, problem, fix=f"give --out NAME{kind}")
    ours = {
        ".html": rb"<!doctype html>(?s:.*)<title>bitflax: ",
        ".jsonl": rb'\{"row": ',
    }
    head = b""
    if out.is_file():
        with disk(out), out.open("rb") as file:
            head = file.read(1024)
    if any(out.resolve() == given(each).resolve() for each in read):
        raise OutputError(out, "is read from", fix="name a new file")
    known = not head or re.match(ours[kind], head)
    if not known or (out.exists() and not out.is_file()):
        problem = "is there, and is nothing that this command wrote"
        raise OutputError(out, problem, fix="name a new file, or remove that one")
    return out


def _columns(text: str | None) -> str | tuple[str, ...] | None:
    """Return the columns that ``--text`` names."""
    columns = None if text is None else tuple(text.split(","))
    return columns[0] if columns and len(columns) == 1 else columns


def augment_command(args: Namespace) -> None:
    """Write a task's training examples with their variants, or go on with it."""
    how = augmentation.Augment(
        masked_lm=args.masked_lm,
        vectors=args.vectors,
        copies=args.copies,
        probability=args.probability,
        candidates=args.candidates,
        seed=args.seed,
    )
    augmentation.check_out(args.out)
    task = data.load_task(
        args.task,
        data_dir=args.data_dir,
        text=_columns(args.text),
        label=args.label,
        dev=args.dev,
        seed=args.seed,
        limit=args.limit,
    )
    for note in task.notes:
        tell(note)
    rows = augmentation.write_augmented(task, args.out, how)
    print(f"{args.out}\t{rows} rows of {len(task.train)} examples")


@training.compiled_for_user()
def predict_command(args: Namespace) -> None:
    """Print label, probability and text, a line each; or each as a line of JSON.

    Of many texts, stderr says how far they are and how many a second there were.

    Raises:
      UsageError: a text is the name of a file, there is none and no stdin, or texts
        come from two places.
      DataError: a line is no text, or no pair as the first is; names its number.
    """
    asked = _asked(args)
    predictor = inference.load(args.model, args.engine, args.threads)
    shown = not sys.stdout.isatty()
    with throughput(asked.total, "predict", shown=shown) as done:
        for count, lines in inference.answers(
            predictor, asked, top=args.top, as_json=args.json
        ):
            print("\n".join(lines), flush=True)
            done(count)


def _asked(args: Namespace) -> inference.Asked:
    """Return the texts that a command line asks about."""
    place = "bitflax predict"
    if args.column is not None and args.csv is None:
        raise UsageError(place, "--column, and no --csv", fix="give --csv FILE too")
    if args.csv is not None and (args.texts or args.pair):
        fix = "leave one of the two out"
        raise UsageError(place, "texts and a file of texts are given", fix=fix)
    if args.csv is not None:
        return inference.from_table(args.csv, _columns(args.column))
    if args.texts or args.pair:
        return inference.from_arguments(args.texts, args.pair)
    return inference.from_stdin()


def export_command(args: Namespace) -> None:
    """Write a model for others to run; print path and bytes."""
    out = inference.export(
        args.model, args.out, args.format, push=args.push, private=args.private
    )
    written = [path for path in (out, *out.glob("*")) if path.is_file()]
    print(f"{out}\t{sum(path.stat().st_size for path in written)}")


def inspect_command(args: Namespace) -> None:
    """Print every tensor's bits and bytes."""
    path = inference.given_model(args.model)
    file = _weights(path)
    named = path.is_file()
    # A packed file may lie in any folder, a dense model's too.
    shared = named or file.name == inference.SHARED
    if not (file.parent / "config.json").is_file() or (shared and _is_packed(file)):
        rows = packed.size_report(file)
    else:
        own = named and not file.name.endswith(".index.json")  # it is its folder
        state = model.read_weights(file) if own else model.read_state(file.parent)[0]
        rows = [
            packed.SizeRow(name, 8 * array.dtype.itemsize, array.size, array.nbytes)
            for name, array in state.items()
        ]
    print(packed.size_table(rows))


def _is_packed(file: Path) -> bool:
    """Whether a file says that it is a packed one; others are no error here."""
    try:
        found = packed.guarded(packed.read_header, file)
    except DamagedFile:
        return False
    return found.metadata.get("format") == packed.FORMAT


def verify_command(args: Namespace) -> None:
    """Read all of a packed file strictly, and print what it is.

    Where the native engine is compiled, it is tested too.
    """
    said = _verified(inference.verify(args.model, args.sha256))
    with contextlib.suppress(InputMissing, StorageError):  # no engine to test
        if native.find_built():
            tested = inference.self_test()
            print(f"native engine: {len(tested)} self-tests passed")
    print(said)


def native_command(args: Namespace) -> None:
    """Compile the native engine if need be; print its self-test and its speeds."""
    built = native.build()
    names, made = native.usable_targets(), native.targets(native.machine())
    about = "compiled {date} in {seconds} s by {compiler}".format(**built.record)
    facts = {
        "library": f"{built.path}, {about}",
        "targets": f"{', '.join(made)}; here: {', '.join(names)}",
        "chosen": inference.chosen_target(),
    }
    print(columns([*facts.items()], "<<"), flush=True)
    tested = inference.self_test()
    rows = [
        ("target", *(f"{kind}, GMAC/s" for kind in BASES), "texts as NumPy has them")
    ]
    seconds = 2 / (len(BASES) * len(names))
    for name in names:
        speeds = [native.speed(name, base, seconds=seconds) for base in BASES.values()]
        own = [test for test in tested if test.target == name]
        close, texts = sum(test.close for test in own), sum(test.texts for test in own)
        said = f"{close} of {texts}"
        rows.append((name, *(f"{speed:.1f}" for speed in speeds), said))
    print("\n" + columns(rows, "<>><"))


def _weights(path: Path) -> Path:
    """Return the file of weights of a packed model, a run or a model's folder."""
    if path.is_file():
        return path
    if (path / inference.SHARED).is_file():
        return path / inference.SHARED
    if (path / "config.json").is_file() or (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    if not path.is_dir():
        fix = "give a packed model.safetensors, a run's folder or a model's"
        raise InputMissing(path, "no such file or folder", fix=fix)
    stages = sorted(path.glob("*-*/params"))
    fix = f"finish the run, or give {stages[-1]}" if stages else "give a run's folder"
    raise InputMissing(path, "no packed model.safetensors in it", fix=fix)


def _verified(found: inference.Verified) -> str:
    """Return what a verified file is, a fact a line."""
    config, rows, known = found.model.config, found.rows, found.model.tokenizer
    size = sum(row.bytes for row in rows)
    shape = f"{config.num_hidden_layers} layers of {config.hidden_size}, "
    shape += f"{config.num_attention_heads} heads, {config.intermediate_size} inside, "
    shape += f"{config.max_position_embeddings} positions"
    says = "a number" if config.regression else f"{config.num_labels} labels"
    older = ""
    if found.version != packed.VERSIONS[-1]:
        older = f"; readers of version {found.version} know all of it too"
    facts = {
        "file": packed.shown(str(found.path)),
        "format": f"bitflax-packed, version {packed.VERSIONS[-1]}{older}",
        "bytes": f"{size:,}",
        "sha256": found.sha256,
        "shape": f"{shape}, {config.vocab_size:,} words; {says}",
        "tokenizer": "none" if known is None else f"{known.vocab_size:,} tokens",
        "activations": _activations(found.model.act),
        **_by_bits(rows),
    }
    return columns([*facts.items()], "<<") + "\nok"


def _activations(act: Any) -> str:
    if act is None:
        return "not quantised"
    quantizers = dict.fromkeys(q for _, q in act) if isinstance(act, tuple) else [act]
    return "; ".join(map(repr, quantizers))


def _by_bits(rows: list[packed.SizeRow]) -> dict[str, str]:
    """Return how many weights have how many bits, and what they take."""
    weights = [row for row in rows if row.name not in ("header", "tokenizer")]
    shares = {}
    for bits in sorted({row.bits for row in weights}):
        of = [row for row in weights if row.bits == bits]
        values, size = sum(row.values for row in of), sum(row.bytes for row in of)
        named = f"{bits:g} bit{'' if bits == 1 else 's'}"
        shares[named] = f"{values:,} weights in {size:,} bytes"
    return shares
