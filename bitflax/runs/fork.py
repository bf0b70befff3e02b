"""A run that begins with what another run has finished, as far as both are the same."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitflax import files, manifests, training
from bitflax.errors import ConfigError
from bitflax.runs import log
from bitflax.runs.environment import differences, listed
from bitflax.runs.folder import COSTS, RECORD, RunFolder, need_run
from bitflax.runs.results import say

_LATER = {"stages", "rest", "positions", "name", "augment"}
"""What no teacher depends on."""


def shared(began: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """Return what is the same of two recipes' runs: teacher, stages up to the first.

    A teacher that is a folder is no part of a run.
    """
    if any(differences(began, recipe, free=COSTS | _LATER)):
        return []
    names = ["teacher"] if recipe["teacher"]["folder"] is None else []
    old, new = ((each["data"] or {}).get("augment") for each in (began, recipe))
    for mine, its in zip(began["stages"], recipe["stages"], strict=False):
        learns = its["corpus"] is None  # from the task's examples
        if any(differences(mine, its, free=COSTS)) or (learns and old != new):
            break
        names.append(its["name"])
    return names


def recorded(old: Path) -> dict[str, Any]:
    """Return the resolved recipe of a run.

    Raises:
      InputMissing: there is no such run.
      DamagedFile: its record cannot be read.
    """
    return _record(old)["recipe"]


def _record(old: Path) -> dict[str, Any]:
    need_run(old)
    return manifests.read_sealed(old / "recipe.json", earlier=RECORD)


def take_finished(old: Path, run: RunFolder, recipe: Mapping[str, Any]) -> None:
    """Copy a run's finished teacher and stages, up to the first that differs.

    What is in the folder already stays, so that the same command goes on.

    Raises:
      InputMissing: there is no such run.
      ConfigError: nothing of it can be taken over: says why.
    """
    record = _record(old)
    began, place = record["recipe"], f"--fork {old}"
    differ = list(differences(began, recipe, free=COSTS | _LATER))
    fix = "leave --fork out, which trains everything again"
    if differ:
        problem = f"nothing can be taken over: {listed(differ)}"
        raise ConfigError(place, problem, fix=f"set that as it was, or {fix}")
    names = shared(began, recipe)
    taken = []
    for number, name in enumerate(names, int(recipe["teacher"]["folder"] is not None)):
        stage = f"{number}-{name}"
        if not (old / stage / "result.json").is_file():
            break
        taken.append(stage)
    if not taken:
        raise ConfigError(place, "nothing of it is finished and the same", fix=fix)
    for name in ("data", "teacher"):  # in one order on all hosts
        if name in record["hashes"]:
            facts = record.get("facts", {}).get(name, {})
            run.pin(name, record["hashes"][name], old, facts)
    if training.is_main_process():
        new = [stage for stage in taken if _copied(old / stage, run.path / stage)]
        for line in log.read_log(old / "log.jsonl") if new else ():
            if line.get("stage") in new:
                run.log(line)
        if new:
            run.note(f"{', '.join(new)}: taken over from {old}")
            say(f"taken over from {old}: {', '.join(new)}")


def _copied(stage: Path, place: Path) -> bool:
    """Copy a stage's result, whole or not at all; False: it has begun here already."""
    if place.exists():
        return False
    draft = place.with_name(f".{place.name}.fork")
    with files.disk(place):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        shutil.copytree(stage / "params", draft / "params")
        shutil.copy(stage / "result.json", draft)
        draft.rename(place)
    return True
