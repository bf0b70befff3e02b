"""A stage's result, and what a run ends with: packed file, table and report."""

import dataclasses
import functools
import itertools
import logging
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bitflax import data, distillation, inference, progress, training, trees
from bitflax.model import Packed, Split
from bitflax.packed import (
    on_host,
    pack,
    read_packed,
    round_rest_by_leaf,
    save_packed,
    size_report,
)
from bitflax.quantization import bits_of
from bitflax.recipe import Stage
from bitflax.runs import findings, log, report
from bitflax.runs.experiment import Experiment
from bitflax.runs.quality import Judge
from bitflax.types import Model, Params

PACKED = "model.safetensors"
_MOST_ORDERED = 4
"""Classes whose orders are all tried."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A trained model and its row of the table."""

    model: Model
    row: report.Row


def kept_share(score: float, whole: Any) -> float | None:
    """Return the share of the teacher's score; None where it means nothing."""
    return score / whole if whole and math.isfinite(score / whole) else None


def say(text: str) -> None:
    """Log a line for the person at the terminal; process 0 alone does."""
    if training.is_main_process():
        logging.getLogger(__name__).info(text)


def check_order(experiment: Experiment, logits: np.ndarray) -> None:
    """Warn where an unnamed teacher scores better with its labels in another order."""
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
    """Return the bits a weight of the stage's narrowest matrices; None: unknown.

    A split matrix has the bits of both its halves.
    """
    flat = trees.flatten(params)
    found = [
        (bits_of(quantizer) or 0) * (2 if isinstance(flat[path], Split) else 1)
        for path, quantizer in trees.match(stage.rules, flat).items()
    ]
    return min(found, default=32) or None


def weight_bytes(folder: Path) -> int:
    """Return the bytes of a model's weights; an export has a packed file beside them.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "model.safetensors").write_bytes(b"dense")
    ...     _ = (Path(folder) / "packed.safetensors").write_bytes(b"one")
    ...     weight_bytes(Path(folder))
    5
    """
    dense = [p for p in folder.glob("*.safetensors") if p.name != inference.PACKED_COPY]
    found = dense or folder.glob("pytorch_model*.bin")
    return sum(path.stat().st_size for path in found)


def finish(
    experiment: Experiment,
    rows: list[report.Row],
    student: Model,
    judge: Judge,
    teacher: Model,
) -> tuple[list[report.Row], list[str]]:
    """Pack the last student, score the file, and write the report.

    Args:
      experiment: what all stages share.
      rows: the teacher's and every stage's.
      student: the last stage's.
      judge: what scores are held against.
      teacher: the fine-tuned one.

    Returns:
      All rows, with the packed file's unless the last stage is FP32; and warnings.
    """
    stages, students = experiment.recipe.stages, experiment.student_data
    last, task = stages[-1] if stages else None, students and students.task
    moved, made = (0, 0), ["report.html", "report.json"]
    found: dict[str, Any] = {}
    about = {
        "task": task.name if task else "general distillation",
        "metric": task.metric if task else "loss",
        "name": experiment.recipe.name,
        "dev": task.measured_on if task else None,
        "baselines": judge.baselines,
    }
    if last is not None and last.corpus is None and students and task:
        scorer, params = students.scorer_of(student, last)
        logits = scorer.logits(params)
        if not task.regression:
            scores, params = (experiment.teacher_data or students).scorer_of(teacher)
            found["answers"] = findings.answers(task, scores.logits(params), logits)
        if last.packs:
            before = data.predictions(logits, regression=task.regression)
            score = functools.partial(_score_file, experiment, before)
            values, moved = training.broadcast(
                lambda: _pack_student(experiment, student, rows, about, score)
            )
            rows, made = [*rows, report.Row(*values)], [PACKED, *made]
    rows = judge.judged(rows)
    warnings = [*judge.warnings(rows, moved)]
    notes = [*task.notes] if task else []
    if moved[1]:
        notes.append(f"packing changes {moved[0]} of {moved[1]} labels")
        say(f"note: {notes[-1]}")
    if training.is_main_process():
        run, unread = experiment.run, list[str]()
        lines = log.read_log(run.log_path, unread) if run.log_path.exists() else []
        if last is not None and last.packs:
            found |= _of_file(experiment, last, student, lines)
        meta = {
            **about,
            "notes": [*notes, *run.record["changes"]],
            "warnings": [*warnings, *unread],
            "findings": found,
            "repeat": _repeat(experiment),
        }
        report.write_report(run.path, rows, lines, meta)
        run.tensorboard.texts("report", _texts(run.path, rows, meta))
    experiment.run.finish(*made)
    return rows, warnings


def _of_file(
    experiment: Experiment,
    stage: Stage,
    student: Model,
    lines: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the report's findings about the packed student's weights and file."""
    path, texts = experiment.run.path / PACKED, experiment.task_data.task.dev.texts
    text = texts[0][0] if len(texts) == 1 else tuple(each[0] for each in texts)
    return {
        "flips": findings.last_flips(lines),
        "weights": findings.latent_histogram(student.params, stage.rules),
        "kinds": findings.bytes_by_kind(path),
        "latency": findings.latencies(path, text),
    }


def _texts(
    folder: Path, rows: Sequence[report.Row], meta: Mapping[str, Any]
) -> dict[str, str]:
    """Return the texts that TensorBoard shows: recipe, command and table."""
    source, command = folder / "recipe.py", meta["repeat"]["command"]
    table = report.table(rows, meta["metric"], meta["baselines"])
    texts = {"table": table, "command": command}
    if source.is_file():
        texts["recipe"] = source.read_text("utf-8")
    return {n: f"```\n{text}\n```" for n, text in texts.items() if text}


def _repeat(experiment: Experiment) -> dict[str, Any]:
    """Return what the report says about how to repeat the run."""
    record, recipe = experiment.run.record, experiment.recipe
    sets = [f"--set {shlex.quote(each)}" for each in record.get("overrides", ())]
    source = experiment.run.path / "recipe.py"
    command = f"bitflax run {shlex.quote(str(source))} --out DIR"
    return {
        "recipe": recipe.name,
        "command": " ".join([command, *sets]) if source.is_file() else None,
        "seed": recipe.seed,
        "began": record.get("began"),
        "versions": record.get("versions"),
        "machine": record.get("machine"),
        "SHA-256": record.get("hashes"),
    }


def _pack_student(
    experiment: Experiment,
    student: Model,
    rows: list[report.Row],
    about: Mapping[str, Any],
    score_file: Callable[[Path], tuple[float, tuple[int, int]]],
) -> tuple[list[Any], tuple[int, int]]:
    """Write the packed file and score it as it is read back.

    Args:
      experiment: what all stages share.
      student: the last stage's.
      rows: the teacher's and every stage's.
      about: what the report says of the run.
      score_file: reads a packed file, and returns its score and the labels that moved.

    Returns:
      The values of the file's row, and (labels that packing changes, labels).
    """
    began = time.monotonic()
    recipe, task_data = experiment.recipe, experiment.task_data
    stage, (config, params) = recipe.stages[-1], student
    rounded = round_rest_by_leaf(params, stage.rules, recipe.rest)
    # The programs are those that quantised for the scores, and not one an operation.
    rules = [(regex, jax.jit(quantizer)) for regex, quantizer in stage.rules]
    packed = pack(rounded, rules, recipe.rest)
    bits = weight_bits(stage, params)
    if not stage.rules:  # the activations alone have few
        bits = int(min(line.bits for line in size_report(packed)))
    if recipe.positions:
        config, packed = distillation.take_positions(config, packed, recipe.positions)
    path, text = experiment.run.path / PACKED, experiment.tokenizer.to_json()
    limits = {"max_length": task_data.data.max_length, "pairs": task_data.task.pairs}

    def save(rows: list[report.Row]) -> None:
        known = report.fields(rows, about)
        source = inference.make_provenance(known, recipe.teacher.model)
        more = {**limits, **source.to_extras()}
        save_packed(path, config, packed, stage.act, text, more)

    save(rows)
    score, moved = score_file(path)
    row = report.Row("packed", score, kept_share(score, rows[0].score), bits)
    save([*rows, row])  # once more: a file carries its own score
    size, seconds = path.stat().st_size, time.monotonic() - began
    row = dataclasses.replace(row, bytes=size, seconds=seconds)
    return list(dataclasses.astuple(row)), moved


def _score_file(
    experiment: Experiment, before: np.ndarray, path: Path
) -> tuple[float, tuple[int, int]]:
    """Return the score of a packed file, and how many labels differ from ``before``.

    The file is read back, and its engine answers. On an accelerator, where another
    program would be compiled for that, its values go through the program that scored
    its student; not where many processes have to call that together.
    """
    task = experiment.task_data.task
    if training.has_accelerator() and training.process_part()[1] == 1:
        kept = read_packed(path, np.asarray)
        values = jax.tree.map(
            on_host, kept.params, is_leaf=lambda x: isinstance(x, Packed)
        )
        # Its shape may be another than the student's: it may have fewer positions.
        stored, stage = Model(kept.config, values), experiment.recipe.stages[-1]
        scorer, params = experiment.task_data.scorer_of(stored, stage)
        said = data.predictions(scorer.logits_of(params), regression=task.regression)
    else:
        said = inference.load(path).evaluate(task).said
    assert task.dev.labels is not None  # or the teacher's answers: `prepare` sees to it
    score = task.scores(said, task.dev.labels)[task.metric]
    moved = (0, 0) if task.regression else (int(np.sum(said != before)), len(before))
    return score, moved
