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

from bitflax import data, inference, packed, recipe, runs, training
from bitflax.data import augmentation
from bitflax.errors import (
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
        print(f"\nfor bits and bytes the teacher's config.json is needed: {where}")


def _read(made: recipe.Recipe) -> tuple[data.Task, data.Task] | tuple[None, None]:
    """Return the tasks of a recipe's teacher and students; None if not on this disk."""
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
        return "(must be given)"
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
    """Run a recipe, or go on with it; several times with ``--seeds``."""
    if args.seeds is not None:
        if args.fork is not None:
            fix = "leave one of them out: runs of different seeds share nothing"
            raise UsageError("--seeds", "does not go with --fork", fix=fix)
        return tune_command(Namespace(**vars(args) | {"over": []}))
    file = recipe.read_recipe(args.recipe)
    made = file.build(args.settings)
    recipe.check_plan(made, args.until)
    # After the checks: a mistyped command fails at once, without waiting for others.
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
    """Remove what only a resume needs of a finished run; print its size."""
    size = runs.clean(args.run)
    print(f"{args.run}\t{size / 1e6:,.1f} MB removed: checkpoints and cache")


@training.compiled_for_user()
def eval_command(args: Namespace) -> None:
    """Print a model's scores on a task's dev examples, or on all of a data file.

    A classifier's have each class's precision, recall and F1, and the confusion matrix.
    """
    read = (name for name in (args.model, args.task, args.dev) if name)
    out = None if args.out is None else _new_file(args.out, ".jsonl", *read)
    named, dev = args.task in data.TASKS, args.dev
    many = named or data.is_hub_data(args.task) or given(args.task).is_dir()
    if dev is None and not many:
        dev = args.task
    predictor = inference.load(args.model, args.engine, args.threads)
    config, known = predictor.config, {}
    if not named:  # the model says which classes there are, and in which order
        known["regression"] = config.regression
        if not config.regression and config.id2label is not None:
            known["classes"] = config.labels
    task = _load_task(args, dev=dev, labelled=True, **known)
    if data.is_hub_data(args.task) and not data.has_dev(task):
        problem = f"{args.task} has no validation split, only the one to learn from"
        raise UsageError(
            "--dev", problem, fix="name the split to measure on: --dev test"
        )
    with throughput(len(task.dev), "eval") as done:
        found = predictor.evaluate(task, done=done)
    print(found.table())
    if out is not None:
        write_text(out, "".join(f"{line}\n" for line in found.lines()))
        _LOG.info("%s: %s examples, a line each", out, len(task.dev))


def _load_task(args: Namespace, **how: Any) -> data.Task:
    """Return the task of a command line, and tell its notes."""
    text, label = _columns(args.text), args.label
    task = data.load_task(
        args.task, data_dir=args.data_dir, text=text, label=label, **how
    )
    for note in task.notes:
        tell(note)
    return task


def _new_file(name: str, kind: str, *read: str) -> Path:
    """Return the path of an output file that may be written.

    Args:
      name: as it was given.
      kind: the suffix that it must have, ``".html"`` or ``".jsonl"``.
      *read: files that the command reads, none of which it may be.

    Raises:
      OutputError: it has another suffix, is a folder or lies in none, is one of the
        files that are read, or is there and was not written by bitflax.
    """
    out = given(name, OutputError)
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a folder" if out.is_dir() else "its folder is not there"
        raise OutputError(out, problem, fix="name a file in a folder that is there")
    if out.suffix != kind:
        problem = f"expected a name that ends with {kind}, found {out.name!r}"
        raise OutputError(out, problem, fix=f"give --out NAME{kind}")
    if any(out.resolve() == given(each).resolve() for each in read):
        problem = "is a file that this command reads"
        raise OutputError(out, problem, fix="name a new file")
    if out.exists() and not _is_ours(out):
        problem = "is there already, and this command did not write it"
        raise OutputError(out, problem, fix="name a new file, or remove that one")
    return out


def _is_ours(path: Path) -> bool:
    """Whether a file is empty or begins as bitflax's pages and lines of JSON do."""
    if not path.is_file():
        return False
    with disk(path), path.open("rb") as file:
        head = file.read(1024)
    return not head or _OURS[path.suffix].match(head) is not None


_OURS = {
    ".html": re.compile(rb"<!doctype html>(?s:.*)<title>bitflax: "),
    ".jsonl": re.compile(rb'\{"row": '),
}


def _columns(text: str | None) -> str | tuple[str, ...] | None:
    """Return the columns that ``--text`` names."""
    columns = None if text is None else tuple(text.split(","))
    return columns[0] if columns and len(columns) == 1 else columns


def augment_command(args: Namespace) -> None:
    """Write a task's training examples and variants of them, or go on with it."""
    how = augmentation.Augment(
        masked_lm=args.masked_lm,
        vectors=args.vectors,
        copies=args.copies,
        probability=args.probability,
        candidates=args.candidates,
        seed=args.seed,
    )
    augmentation.check_out(args.out)
    task = _load_task(args, dev=args.dev, seed=args.seed, limit=args.limit)
    rows = augmentation.write_augmented(task, args.out, how)
    print(f"{args.out}\t{rows} rows of {len(task.train)} examples")


@training.compiled_for_user()
def predict_command(args: Namespace) -> None:
    """Print label, probability and text, a line each; or each as a line of JSON.

    stderr shows the progress of many texts, and how many were answered a second.

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
    """Print the bits and bytes of every tensor."""
    print(packed.size_table(inference.tensor_sizes(args.model)))


def verify_command(args: Namespace) -> None:
    """Read all of a packed file strictly, and print what it is.

    Where the native engine is compiled, it is tested too.
    """
    said = _verified(inference.verify(args.model, args.sha256))
    with contextlib.suppress(InputMissing, StorageError):  # it cannot be compiled
        if native.find_built():
            tested = inference.self_test()
            print(f"native engine: {len(tested)} self-tests passed")
    print(said)


def native_command(args: Namespace) -> None:
    """Compile the native engine if need be, test it, and print its speeds."""
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


def _verified(found: inference.Verified) -> str:
    """Return the facts about a verified file, one a line."""
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
    """Return, for each number of bits, how many weights have it and their bytes."""
    weights = [row for row in rows if row.name not in ("header", "tokenizer")]
    shares = {}
    for bits in sorted({row.bits for row in weights}):
        of = [row for row in weights if row.bits == bits]
        values, size = sum(row.values for row in of), sum(row.bytes for row in of)
        named = f"{bits:g} bit{'' if bits == 1 else 's'}"
        shares[named] = f"{values:,} weights in {size:,} bytes"
    return shares
