"""What a stage ends with, and what a run ends with: packed file, table, report."""

import dataclasses
import itertools
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from bitflax import data, distillation, inference, progress, training, trees
from bitflax.errors import InputMissing
from bitflax.model import Split
from bitflax.packed import pack, save_packed, size_report
from bitflax.quantization import bits_of
from bitflax.recipe import Stage
from bitflax.runs import report
from bitflax.runs.experiment import Experiment
from bitflax.types import Model, Params

PACKED = "model.safetensors"
_MOST_ORDERED = 4
"""Classes whose orders are all tried."""


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
    """Log a line for the person at the terminal; process 0 alone does."""
    if training.is_main_process():
        logging.getLogger(__name__).info(text)


def check_order(experiment: Experiment, logits: np.ndarray) -> None:
    """Warn where a teacher without label names fits another order of them better."""
    assert experiment.teacher_data is not None
    task, count = experiment.teacher_data.task, logits.shape[1]
    if task.dev.labels is None or not task.labels or count > _MOST_ORDERED:
        return
    said = data.predictions(logits)
    right = {
        order: float(np.mean(np.array(order)[said] == task.dev.labels))
        for order in itertools.permutations(range(count))
    }
    best, mine = max(right, key=lambda order: right[order]), right[(*range(count),)]
    if right[best] > mine:
        names = ", ".join(task.labels[i] for i in best)
        problem = f"the teacher's labels have no names: in the order {names} it is "
        problem += f"right in {right[best]:.1%} of dev, not in {mine:.1%}"
        fix = "give its config.json an id2label in that order"
        note = f"{problem}\nfix: {fix}"
        if training.is_main_process():
            progress.tell(note)
        students = experiment.task_data
        students.task = dataclasses.replace(students.task, notes=(*task.notes, note))


def say_scores(name: str, scores: dict[str, float]) -> None:
    """Log what a teacher or a stage scored."""
    shown = [f"{metric} {value:.4f}" for metric, value in scores.items()]
    say(f"{name}: {', '.join(shown) or 'no score: its loss reads no logits'}")


def weight_bits(stage: Stage, params: Params) -> int | None:
    """Return the bits of a position of the stage's narrowest weights; None: unknown.

    A matrix that was split takes the bits of both of its halves.
    """
    flat = trees.flatten(params)
    found = [
        (bits_of(quantizer) or 0) * (2 if isinstance(flat[path], Split) else 1)
        for path, quantizer in trees.match(stage.rules, flat).items()
    ]
    return min(found, default=32) or None


def packed_bits(packed: Params) -> int:
    """Return the bits of the narrowest weights where no rule says them.

    >>> import jax.numpy as jnp
    >>> packed_bits(pack({"kernel": jnp.ones((8, 8))}, (), "int8"))
    8
    """
    return int(min(line.bits for line in size_report(packed)))


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model's weights.

    Raises:
      InputMissing: there are none.
    """
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not found:
        raise InputMissing(folder, "no weights", fix="give a folder with weights")
    return found


def finish(
    experiment: Experiment, rows: list[report.Row], result: Result
) -> list[report.Row]:
    """Pack the last student, score the file, and write the report.

    Args:
      experiment: what all stages share.
      rows: the teacher's and every stage's.
      result: the last stage's.

    Returns:
      The packed file's row, or nothing where the last stage is FP32.
    """
    recipe = experiment.recipe
    task = experiment.student_data and experiment.student_data.task
    notes = list(task.notes) if task else []
    extra, moved, made = [], [], ["report.html", "report.json"]
    last = recipe.stages[-1] if recipe.stages else None
    if last is not None and last.packs:
        small = experiment.task_data.small(result.model)
        scorer = experiment.task_data.scorer(last, small.config)
        logits = scorer.logits(small.params)
        values, moved = training.broadcast(
            lambda: _packed(experiment, last, rows, result, logits)
        )
        extra, made = [report.Row(*values)], [PACKED, *made]
    notes += moved
    notes += experiment.run.changes
    meta = {
        "task": task.name if task else "general distillation",
        "metric": task.metric if task else "loss",
        "name": recipe.name,
        "notes": notes,
    }
    if training.is_main_process():
        log = experiment.run.log_path
        report.write_report(experiment.run.path, [*rows, *extra], log, meta)
    for note in moved:
        say(f"note: {note}")
    experiment.run.finish(*made)
    return extra


def _packed(
    experiment: Experiment,
    stage: Stage,
    rows: list[report.Row],
    result: Result,
    logits: np.ndarray,
) -> tuple[list[Any], list[str]]:
    """Write the packed file; return its row, and a note on the labels that it moves.

    ``logits`` are those of the student before it is packed.
    """
    began = time.monotonic()
    recipe, task_data = experiment.recipe, experiment.task_data
    config, params = result.model
    packed = pack(params, stage.rules, recipe.rest)
    bits = weight_bits(stage, params) if stage.rules else packed_bits(packed)
    if recipe.positions:
        config, packed = distillation.take_positions(config, packed, recipe.positions)
    path = experiment.run.path / PACKED
    text = experiment.tokenizer.to_json()
    task = task_data.task

    def save(rows: list[report.Row]) -> None:
        source = inference.make_provenance(
            recipe.name, task.name, task.metric, recipe.teacher.model, rows
        )
        extras = {"max_length": task_data.data.max_length, "pairs": task.pairs}
        extras |= source.to_extras()
        save_packed(path, config, packed, stage.act, text, extras)

    save(rows)
    predictor = inference.load(path)
    dev = task.dev
    assert dev.labels is not None
    texts = list(dev.texts[0])
    if len(dev.texts) == 2:
        texts = list(zip(*dev.texts, strict=True))
    real = task.regression
    said = data.predictions(predictor.logits(texts), regression=real)
    before = data.predictions(logits, regression=real)
    score = task.scores(said, dev.labels)[task.metric]
    row = report.Row("packed", score, kept_share(score, rows[0].score), bits)
    save([*rows, row])  # once more: a file carries its own score
    size, seconds = path.stat().st_size, time.monotonic() - began
    row = dataclasses.replace(row, bytes=size, seconds=seconds)
    moved = f"packing moves {int(np.sum(said != before))} of {len(said)} labels"
    return list(dataclasses.astuple(row)), [] if real else [moved]
