"""Several runs of one recipe, with other seeds or other settings, and their table.

Each run has its folder, OUT/seed=0/ or OUT/lr=1e-3,seed=0/; OUT/trials.json holds the
scores of all. Runs of one seed share what they can: the teacher, finished stages, the
teacher's kept outputs and compiled steps. A finished run keeps no checkpoints.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitflax import files, progress, training
from bitflax.errors import ConfigError, OutputError, UsageError
from bitflax.recipe import Recipe, RecipeFile, check_plan, resolved
from bitflax.runs import fork, report, stages
from bitflax.runs.cleaning import clean
from bitflax.runs.log import finite
from bitflax.runs.results import say

REPORT = "trials.json"
LONGEST = 100
MOST = 10_000
"""Runs of one command; a larger number is taken for a slip of the keyboard."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One of several runs.

    ``settings`` are its own, as in ``--set``; ``common`` are those that all runs have.
    """

    settings: tuple[str, ...]
    seed: int
    recipe: Recipe
    common: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """All settings of the run."""
        return (*_without_seed(self.common), *self.settings, f"seed={self.seed}")

    @property
    def name(self) -> str:
        """The name of its folder: ``lr=1e-3,seed=0``.

        >>> Trial(("stages.onebit.optim.lr=1e-3",), 0, Recipe(data=None)).name
        'lr=1e-3,seed=0'
        """
        parts = (*self.settings, f"seed={self.seed}")
        short = [part.split("=")[0].rpartition(".")[2] for part in parts]
        if len({*short}) < len(short):
            short = [part.split("=")[0] for part in parts]
        named = (
            f"{s}={p.partition('=')[2]}" for s, p in zip(short, parts, strict=True)
        )
        whole = ",".join(named)
        plain = re.sub(r"[^\w.,=+-]", "_", whole)
        if plain == whole and len(plain) <= LONGEST:
            return plain
        return f"{plain[:LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def combinations(over: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every combination of the values that ``--over NAME=A,B`` gives.

    Values that contain commas are separated by semicolons.

    Raises:
      UsageError: there is no ``=``, a value is missing or stands twice, it is the seed,
        or there are more than ``MOST`` combinations.

    >>> combinations(["lr=1e-3,1e-4", "layers=1,3,5;0,2,4"])[:2]
    [('lr=1e-3', 'layers=1,3,5'), ('lr=1e-3', 'layers=0,2,4')]
    """
    found = []
    for text in over:
        key, equals, rest = text.partition("=")
        values = [value.strip() for value in rest.split(";" if ";" in rest else ",")]
        if not (key and equals and all(values)) or len({*values}) < len(values):
            fix = "give --over NAME=VALUE,VALUE, each value once"
            raise UsageError(f"--over {text}", "expected a name and values", fix=fix)
        if key.strip() == "seed":
            problem = "expected another dial: seeds are given by --seeds"
            raise UsageError(f"--over {text}", problem, fix="give --seeds 3")
        found.append([f"{key}={value}" for value in values])
    count = math.prod(map(len, found))
    if count > MOST:
        problem = f"expected at most {MOST:,} combinations, found {count:,}"
        raise UsageError("--over", problem, fix="give fewer values")
    return list(itertools.product(*found))


def make_trials(
    file: RecipeFile,
    settings: Sequence[str] = (),
    over: Sequence[str] = (),
    seeds: int = 1,
    until: str | None = None,
) -> list[Trial]:
    """Return the runs, seed after seed, each with its recipe built and checked.

    Args:
      file: the recipe's, from ``bitflax.recipe.read_recipe``.
      settings: those that all runs have.
      over: ``"stages.onebit.optim.lr=2e-4,1e-3"``: each value is a run of its own.
      seeds: how many runs of each, with seeds that count from the recipe's.
      until: the stage after which each is to stop.

    Raises:
      UsageError: ``over`` cannot be read, ``seeds`` is out of bounds, or no stage is
        called ``until``.
      ConfigError: a setting names no dial and no field, or is not of its type.
    """
    found = combinations(over)
    most = MOST // len(found)
    if not 1 <= seeds <= most:
        problem = f"expected 1 to {most:,}, found {seeds:,}"
        raise UsageError("--seeds", problem, fix="give --seeds 3")
    first, rest = file.build(settings).seed, _without_seed(settings)
    trials = [
        Trial(chosen, seed, _build(file, rest, chosen, seed), tuple(settings))
        for seed in range(first, first + seeds)
        for chosen in found
    ]
    for trial in trials:
        check_plan(trial.recipe, until)
    return trials


def _build(
    file: RecipeFile, settings: Sequence[str], chosen: Sequence[str], seed: int
) -> Recipe:
    """Return a run's recipe; an error names the option that gave the wrong value."""
    try:
        return file.build([*settings, *chosen, f"seed={seed}"])
    except ConfigError as error:
        for option, own in (("--over", chosen), ("--seeds", [f"seed={seed}"])):
            if error.place in [f"--set {setting}" for setting in own]:
                place = error.place.replace("--set", option, 1)
                raise ConfigError(place, error.problem, fix=error.fix) from error
        raise


def _without_seed(settings: Sequence[str]) -> list[str]:
    return [setting for setting in settings if setting.partition("=")[0] != "seed"]


def run_trials(
    file: RecipeFile,
    trials: Sequence[Trial],
    out: str | Path,
    until: str | None = None,
) -> list[dict[str, Any]]:
    """Run every trial, or go on with them; print and write the table.

    Args:
      file: the recipe's.
      trials: from ``make_trials``.
      out: a folder for all of them.
      until: stop each after this stage.

    Returns:
      A summary of each choice, the best one first: ``settings``, and for every row of
      the run's table its scores' ``mean`` and sample ``deviation`` (None of one run).

    Raises:
      OutputError: ``out`` is a run's folder.
      BitflaxError: a run fails.
    """
    out = files.given(out, OutputError)
    if (out / "recipe.json").exists():
        fix = "choose another --out: each run has a folder of its own in it"
        raise OutputError(out, "is the folder of one run", fix=fix)
    with files.disk(out):
        out.mkdir(parents=True, exist_ok=True)
    rows: list[list[report.Row]] = []
    kept: list[Any] = []
    with training.compiled_for_user(out / "cache"):
        for number, trial in enumerate(trials):
            say(f"{number + 1} of {len(trials)}: {trial.name}")
            made = stages.run(
                trial.recipe,
                out / trial.name,
                until=until,
                source=file.source,
                overrides=trial.overrides,
                fork=_nearest_run(out, trial, trials[:number]),
                kept=kept,
            )
            rows.append(made or _read_rows(out / trial.name, until))
            if until is None:
                clean(out / trial.name)
    return _summarize(file, out, trials, rows)


def _nearest_run(out: Path, trial: Trial, before: Sequence[Trial]) -> Path | None:
    """Return the folder of the earlier run that shares most stages with this one."""
    recipe = resolved(trial.recipe)
    shares = [len(fork.shared(resolved(other.recipe), recipe)) for other in before]
    most = max(shares, default=0)
    return out / before[shares.index(most)].name if most else None


def _read_rows(folder: Path, until: str | None) -> list[report.Row]:
    """Return the rows of a run that was finished before, up to a stage."""
    rows = report.read_report(folder)[0]
    names = [row.name for row in rows]
    return rows if until is None else rows[: names.index(until) + 1]


def _summarize(
    file: RecipeFile,
    out: Path,
    trials: Sequence[Trial],
    rows: Sequence[Sequence[report.Row]],
) -> list[dict[str, Any]]:
    """Print and write the table of all runs; return its rows, the best one first."""
    found = []
    for choice in dict.fromkeys(trial.settings for trial in trials):
        mine = [r for t, r in zip(trials, rows, strict=True) if t.settings == choice]
        found.append({"settings": list(choice), "runs": len(mine), "rows": means(mine)})
    # A recipe without a task is scored by its loss.
    found.sort(key=_last_mean, reverse=trials[0].recipe.data is not None)
    record = {
        "recipe": file.name,
        "settings": list(trials[0].common),
        "choices": found,
        "trials": [
            {"name": t.name, "stages": report.records(r)}
            for t, r in zip(trials, rows, strict=True)
        ],
    }
    if training.is_main_process():
        files.write_text(out / REPORT, json.dumps(record, indent=2) + "\n")
        print(f"\n{trials_table(found)}")
        if len(found) > 1:
            chosen = [*trials[0].common, *found[0]["settings"]]
            sets = " ".join(f"--set {shlex.quote(setting)}" for setting in chosen)
            where, best = (shlex.quote(str(x)) for x in (file.path, f"{out}-best"))
            print(f"best: bitflax run {where} --out {best} {sets}")
    return found


def _last_mean(choice: dict[str, Any]) -> float:
    scores = [row["mean"] for row in choice["rows"] if row["mean"] is not None]
    return scores[-1] if scores else -math.inf


def means(runs: Sequence[Sequence[report.Row]]) -> list[dict[str, Any]]:
    """Return the mean of each row over runs whose tables have the same rows.

    Each row has ``name``, ``mean``, ``deviation`` and ``kept``. The deviation is the
    sample's, ``sqrt(sum (x - mean)^2 / (n - 1))``; None of one run. ``kept`` is the
    mean of the shares that each run kept of its own teacher's score.

    >>> means([[report.Row("packed", x, x)] for x in (0.5, 0.7)])
    [{'name': 'packed', 'mean': 0.6, 'deviation': 0.1414..., 'kept': 0.6}]
    """
    found = []
    for same in zip(*runs, strict=True):
        scores = [x for row in same if (x := finite(row.score)) is not None]
        kept = [x for row in same if (x := finite(row.kept)) is not None]
        found.append(
            {
                "name": same[0].name,
                "mean": float(np.mean(scores)) if scores else None,
                "deviation": float(np.std(scores, ddof=1)) if scores[1:] else None,
                "kept": float(np.mean(kept)) if kept else None,
            }
        )
    return found


def trials_table(choices: Sequence[dict[str, Any]]) -> str:
    """Return the table: a line for each choice, a column for each stage.

    >>> row = {"name": "packed", "mean": 0.6, "deviation": 0.1414, "kept": 0.98}
    >>> print(trials_table([{"settings": ["lr=1e-3"], "runs": 2, "rows": [row]}]))
             runs           packed   kept
    lr=1e-3     2  0.6000 +-0.1414  98.0%
    """
    names = list(dict.fromkeys(r["name"] for each in choices for r in each["rows"]))
    lines = [("", "runs", *names, "kept")]
    for choice in choices:
        rows = choice["rows"]
        known = {row["name"]: shown_mean(row) for row in rows}
        cells = [known.get(name, "-") for name in names]
        kept = "-" if rows[-1]["kept"] is None else f"{rows[-1]['kept']:.1%}"
        lines.append((", ".join(choice["settings"]), choice["runs"], *cells, kept))
    return progress.columns(lines, "<>" + ">" * (len(names) + 1))


def shown_mean(row: dict[str, Any]) -> str:
    """Return a row's mean and its deviation, as ``means`` gives them."""
    if row["mean"] is None:
        return "-"
    deviation = row["deviation"]
    return f"{row['mean']:.4f}" + (f" +-{deviation:.4f}" if deviation else "")
