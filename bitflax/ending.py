"""What a stage ends with, and what a run ends with: packed file, table, report."""

import dataclasses
import functools
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bitflax import evaluate, metrics, model, packing, predict, report
from bitflax.errors import InputMissing
from bitflax.recipe import Stage
from bitflax.rules import bits_of, quantize
from bitflax.setting import Model, Setting
from bitflax.types import BertConfig

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


def evaluator(
    setting: Setting, config: BertConfig, stage: Stage | None = None
) -> evaluate.Evaluator:
    """Return what scores a stage's parameters; without a stage, a plain model's."""
    rules = stage.rules if stage else ()
    labels = setting.task.dev.labels
    assert labels is not None  # where data have none, prepare takes the teacher's
    return evaluate.Evaluator(
        model.bert(config, stage.act if stage else None),
        setting.dev,
        labels,
        setting.task.metric,
        setting.task.regression,
        setting.mesh,
        functools.partial(quantize, rules=rules) if rules else None,
    )


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def say_scores(name: str, scores: dict[str, float]) -> None:
    """Print what a teacher or a stage scored, on stderr."""
    shown = (f"{metric} {value:.4f}" for metric, value in scores.items())
    say(f"{name}: {', '.join(shown)}")


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
    recipe, notes = setting.recipe, list(setting.task.notes)
    extra, made = [], ["report.html", "report.json"]
    last = recipe.stages[-1] if recipe.stages else None
    if last is not None and (last.rules or last.act):
        row, moved = _packed(setting, last, teacher, result)
        extra, made = [row], [PACKED, *made]
        notes += moved
    meta = {
        "task": setting.task.name,
        "metric": setting.task.metric,
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
    length = {"max_length": setting.recipe.data.max_length}
    packing.save_packed(path, config, packed, stage.act, text, length)
    predictor = predict.load(path)
    dev = setting.task.dev
    assert dev.labels is not None
    texts = list(dev.texts[0])
    if len(dev.texts) == 2:
        texts = list(zip(*dev.texts, strict=True))
    small = setting.small(result.model)
    whole = evaluator(setting, small.config, stage).logits(small.params)
    real = setting.task.regression
    said = metrics.predictions(predictor.logits(texts), regression=real)
    before = metrics.predictions(whole, regression=real)
    score = metrics.score(setting.task.metric, said, dev.labels)[setting.task.metric]
    row = report.Row(
        "packed",
        score,
        kept_share(score, teacher.row.score),
        min((bits_of(q) or 32 for _, q in stage.rules), default=32),
        path.stat().st_size,
        time.monotonic() - began,
    )
    moved = f"packing moves {int(np.sum(said != before))} of {len(said)} labels"
    return row, [] if real else [moved]
