"""What each subcommand of ``bitflax`` does; ``bitflax.cli`` parses and reports errors.

What costs seconds to import is imported by the command that needs it.
"""

import inspect
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitflax import outline, recipe, recipefiles
from bitflax.data import tasks
from bitflax.errors import DataError, InputMissing


def ls_command(args: Namespace) -> None:
    """Print the recipes and the named tasks."""
    files = recipefiles.recipe_files()
    print("recipes")
    _print_pairs((name, recipefiles.summary(path)) for name, path in files.items())
    print("\ntasks")
    _print_pairs((name, tasks.describe(name)) for name in tasks.task_names())
    print("\nor a path: a recipe's .py, a task's .tsv, .csv or .jsonl")


def _print_pairs(pairs: Any) -> None:
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, text in pairs:
        print(f"  {name:<{width}}  {text}")


def show_command(args: Namespace) -> None:
    """Print a recipe's docstring, dials, stages, bits and expected bytes."""
    file = recipefiles.read_recipe(args.recipe)
    made = file.build(args.settings)
    config, where = outline.teacher_config(made)
    text = outline.describe(made, config)
    print(f"{file.path}\n\n{file.doc}\n\ndials (--set NAME=VALUE)")
    _print_pairs((name, _dial(default)) for name, (_, default) in file.dials.items())
    print(f"\n{text}")
    if config is None:
        print(f"\nbits and bytes need the teacher's shape: {where}")


def _dial(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "(has to be given)"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if default in (None, True, False) else str(default)


def run_command(args: Namespace) -> None:
    """Run a recipe, or go on with it."""
    file = recipefiles.read_recipe(args.recipe)
    made = file.build(args.settings)
    recipe.check_until(made, args.until)
    from bitflax import stages

    stages.run(
        made,
        args.out,
        until=args.until,
        source=file.source,
        overrides=tuple(args.settings),
    )


def eval_command(args: Namespace) -> None:
    """Print a model's scores on a task's dev examples."""
    from bitflax import predict

    columns = args.text.split(",") if args.text else None
    text = columns[0] if columns and len(columns) == 1 else columns
    own = args.task not in tasks.task_names()
    task = tasks.load_task(
        args.task,
        data_dir=args.data_dir,
        text=text,
        label=args.label,
        dev=args.task if own else None,
    )
    for note in task.notes:
        print(f"note: {note}", file=sys.stderr)
    scores = predict.load(args.model).score(task)
    for name, value in scores.items():
        print(f"{name}\t{value:.4f}")
    print(f"examples\t{len(task.dev)}")


def predict_command(args: Namespace) -> None:
    """Print label, probability and text, a line each."""
    from bitflax import predict

    predictor = predict.load(args.model)
    lines = list(args.texts or _stdin())
    for label, probability, text in predictor.predict(lines):
        print(f"{label}\t{probability:.4f}\t{text}")


def _stdin() -> Iterator[str]:
    if sys.stdin.isatty():
        print("a text a line; Ctrl-D ends", file=sys.stderr)
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            yield raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            problem, fix = f"not UTF-8 ({error.reason})", "convert it to UTF-8"
            raise DataError(f"stdin:{number}", problem, fix=fix) from error


def inspect_command(args: Namespace) -> None:
    """Print every tensor's bits and bytes."""
    from bitflax import packing

    path = Path(args.model)
    if path.is_dir() and (path / "model.safetensors").is_file():
        path = path / "model.safetensors"
    if not path.exists():
        fix = "give a packed model.safetensors or a run's folder"
        raise InputMissing(path, "no such file or folder", fix=fix)
    print(packing.size_table(packing.size_report(path)))
