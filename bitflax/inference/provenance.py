"""Where a student comes from: its teacher, its task, and every stage's score.

A packed file has this in its ``extras``, a run in its ``report.json``. Neither is
trusted: values of a wrong type or length are left out.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitflax import files
from bitflax.data import short_name
from bitflax.model import is_hub_name

PACKAGED = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
"""Hub names of the models that packages ship."""
_MOST_STAGES = 50


class Scored(NamedTuple):
    """A stage's score, the bits of its weights, and its bytes on disk."""

    name: str
    score: float | None
    bits: int | None
    bytes: int | None


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a student comes from; None is unknown.

    Attributes:
      recipe: the recipe's name.
      task: the named task, or the name of its data file.
      metric: what the scores are.
      teacher: the name of a packaged model or of one on a hub; never a local path.
      stages: the teacher first, the packed student last.
      dev: what the scores were measured on, in words.
      baselines: names and scores of the majority class and a linear model.
    """

    recipe: str | None = None
    task: str | None = None
    metric: str | None = None
    teacher: str | None = None
    stages: tuple[Scored, ...] = ()
    dev: str | None = None
    baselines: tuple[tuple[str, float], ...] = ()

    def to_extras(self) -> dict[str, Any]:
        """Return it as JSON-able data, without what is unknown.

        >>> Provenance("xtc", stages=(Scored("onebit", 0.8, 1, None),)).to_extras()
        {'recipe': 'xtc', 'stages': [['onebit', 0.8, 1, None]]}
        """
        found = dataclasses.asdict(self)
        for name in ("stages", "baselines"):
            found[name] = [list(each) for each in getattr(self, name)]
        return {name: value for name, value in found.items() if value}


def make_provenance(report: Mapping[str, Any], teacher: str) -> Provenance:
    """Return the provenance of a run's student.

    Args:
      report: what ``report.json`` holds of the run.
      teacher: the name, hub id or folder of the model that the run began with.
    """
    simple = report.get("baselines", ())
    found = {
        "recipe": report.get("name"),
        "task": short_name(report["task"]),
        "teacher": teacher,
        "stages": [[row[n] for n in Scored._fields] for row in report["stages"]],
        "baselines": [[each["name"], each["score"]] for each in simple],
    }
    return from_extras({**report, **found})


def from_extras(extras: Mapping[str, Any]) -> Provenance:
    """Return the provenance that the ``extras`` of a packed file hold.

    >>> from_extras({"task": "icd10cm", "metric": 7, "stages": [["onebit"], 3]})
    Provenance(recipe=None, task='icd10cm', metric=None, teacher=None, stages=(),
               dev=None, baselines=())
    """
    stages = extras.get("stages")
    found = map(_scored, stages[:_MOST_STAGES] if isinstance(stages, list) else ())
    named = ("recipe", "task", "metric", "dev")
    texts = {name: _text(extras.get(name)) for name in named}
    simple = extras.get("baselines")
    rows = simple[:_MOST_STAGES] if isinstance(simple, list) else ()
    pairs = (_scored([*row, None, None]) for row in rows if isinstance(row, list))
    baselines = ((x.name, x.score) for x in pairs if x and x.score is not None)
    teacher = _text(extras.get("teacher"))
    return Provenance(
        **texts,
        teacher=teacher and _public(teacher),
        stages=tuple(stage for stage in found if stage is not None),
        baselines=tuple(baselines),
    )


def from_run(folder: Path) -> Provenance | None:
    """Return the provenance in a finished run's ``report.json``; None: it has none."""
    try:
        found = files.read_json(folder / "report.json")
        recipe = files.read_json(folder / "recipe.json")["recipe"]
        taught = recipe["teacher"]
        teacher = taught["folder"] or taught["pretrained"]
        return make_provenance({**found, "name": recipe["name"]}, teacher)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _scored(row: Any) -> Scored | None:
    """Return a stage of ``[name, score, bits, bytes]``; None where that is not one."""
    if not isinstance(row, (list, tuple)) or len(row) != 4 or not _text(row[0]):
        return None
    name, score, *counts = row
    real = type(score) in (int, float) and math.isfinite(score)
    bits, size = (n if type(n) is int and n > 0 else None for n in counts)
    return Scored(name, float(score) if real else None, bits, size)


def _text(value: Any) -> str | None:
    fits = isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable()
    return value if fits else None


def _public(teacher: str) -> str | None:
    """Return a teacher's name if it has one outside this machine.

    >>> _public("minilm"), _public("google/mobilebert-uncased"), _public("/tmp/mine")
    ('minilm', 'google/mobilebert-uncased', None)
    """
    if teacher in PACKAGED:
        return teacher
    return teacher if is_hub_name(teacher) else None
