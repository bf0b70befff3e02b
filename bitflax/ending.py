"""What a stage ends with, and what a run ends with: packed file, table, report."""

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bitflax import leaves, metrics, packing, predict, report, trees
from bitflax.errors import InputMissing
from bitflax.lesson import Model
from bitflax.recipe import Stage
from bitflax.rules import bits_of
from bitflax.setting import Setting
from bitflax.types import Params

PACKED = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Result:
    """A trained model and how it scored."""

    model: Model
    scores: dict[str, float]
    seconds: float
    row: report.Row


def kept_share(score: float, whole: Any) -> float | None:
    """Return the share of the teacher's score; None where it means nothing."""
    return score / whole if whole and math.isfinite(score / whole) else None


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def say_scores(name: str, scores: dict[str, float]) -> None:
    """Print what a teacher or a stage scored, on stderr."""
    shown = (f"{metric} {value:.4f}" for metric, value in scores.items())
    say(f"{name}: {', '.join(shown)}")


def weight_bits(stage: Stage, params: Params) -> int | None:
    """Return the bits of a position of the stage's narrowest weights; None: unknown.

    A matrix that was split takes the bits of both of its halves.
    """
    flat = trees.flatten(params)
    found = [
        (bits_of(quantizer) or 0) * (2 if isinstance(flat[path], leaves.Split) else 1)
        for path, quantizer in trees.match(stage.rules, flat).items()
    ]
    return min(found, default=32) or None


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model's weights.

    Raises:
      InputMissing: there are none.
    """
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not found:
        raise InputMissing(folder, "no weights", fix="give a folder with weights")
    return found


def ending(
    setting: Setting, rows: list[report.Row], teacher: Result, result: Result
) -> list[report.Row]:
    """Pack the last student, score the file, and write the report.

    Returns:
      The packed file's row, or nothing where the last stage is FP32.
    """
    recipe, task = setting.recipe, setting.task and setting.task.task
    notes = list(task.notes) if task else []
    extra, made = [], ["report.html", "report.json"]
    last = recipe.stages[-1] if recipe.stages else None
    if last is not None and last.packs:
        row, moved = _packed(setting, last, teacher, result)
        extra, made = [row], [PACKED, *made]
        notes += moved
    meta = {
        "task": task.name if task else "general distillation",
        "metric": task.metric if task else "loss",
        "name": recipe.name,
        "notes": notes,
    }
    report.write_report(setting.run.path, [*rows, *extra], setting.run.log_path, meta)
    for note in notes:
        say(f"note: {note}")
    setting.run.finish(*made)
    return extra


def _packed(setting: Setting, stage: Stage, teacher: Result, result: Result):
    """Write the packed file; return its row, and a note on the labels that it moves."""
    began = time.monotonic()
    config, params = result.model
    packed = packing.pack(params, stage.rules, setting.recipe.rest)
    path = setting.run.path / PACKED
    text = setting.tokenizer.to_json()
    lesson = setting.lesson
    length = {"max_length": lesson.data.max_length}
    packing.save_packed(path, config, packed, stage.act, text, length)
    predictor = predict.load(path)
    dev = lesson.task.dev
    assert dev.labels is not None
    texts = list(dev.texts[0])
    if len(dev.texts) == 2:
        texts = list(zip(*dev.texts, strict=True))
    small = lesson.small(result.model)
    whole = lesson.scorer(stage, small.config).logits(small.params)
    real = lesson.task.regression
    said = metrics.predictions(predictor.logits(texts), regression=real)
    before = metrics.predictions(whole, regression=real)
    score = metrics.score(lesson.metric, said, dev.labels)[lesson.metric]
    row = report.Row(
        "packed",
        score,
        kept_share(score, teacher.row.score),
        weight_bits(stage, params),
        path.stat().st_size,
        time.monotonic() - began,
    )
    moved = f"packing moves {int(np.sum(said != before))} of {len(said)} labels"
    return row, [] if real else [moved]
