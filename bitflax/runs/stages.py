"""A recipe's run: teacher, stages, packed file, report; each goes on where it stopped.

Everything that can be checked is checked before the first step.
"""

import contextlib
import functools
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitflax import distillation, files, model, progress, training
from bitflax.data import Task
from bitflax.recipe import (
    Recipe,
    Stage,
    Teacher,
    check_plan,
    planned_optim,
    resolved,
)
from bitflax.runs import initialization, report
from bitflax.runs.environment import with_dtypes, with_rate
from bitflax.runs.experiment import (
    Experiment,
    StageData,
    TaskData,
    loaded_model,
    output_shapes,
)
from bitflax.runs.folder import RunFolder
from bitflax.runs.fork import recorded, take_finished
from bitflax.runs.log import OnLog
from bitflax.runs.prepare import prepare
from bitflax.runs.quality import make_judge
from bitflax.runs.results import (
    Result,
    check_order,
    finish,
    kept_share,
    say,
    say_scores,
    weight_bits,
    weight_bytes,
)
from bitflax.runs.stage_training import train_stage
from bitflax.runs.summary import run_summary
from bitflax.types import BertConfig, LossFn, Model


@training.failures_told()
@progress.lines_shown()
def run(
    recipe: Recipe,
    out: str | Path,
    *,
    until: str | None = None,
    source: str = "",
    overrides: Sequence[str] = (),
    fork: str | Path | None = None,
    on_log: OnLog | None = None,
    kept: list[Any] | None = None,
) -> list[report.Row]:
    """Run a recipe in a folder, or go on with it; print the table at the end.

    Many processes that ``bitflax.initialize`` brought together run it as one: each
    calls this, with a folder that all of them see.

    Args:
      recipe: from ``bitflax.load_recipe``.
      out: the run folder; the same recipe again goes on where it stopped, and a
        finished run is left as it is.
      until: stop after this stage (``"teacher"`` or a stage's name); after the last
        one, the student is still packed.
      source: the recipe file's text, kept in the folder.
      overrides: what was changed in it, kept too.
      fork: another run's folder, from which the finished stages are copied, up to the
        first stage whose settings differ.
      on_log: called with every line of the log, a flat dict (``stage``, ``step``,
        ``loss/loss``, ``dev/accuracy``, ``lr``), for a logger of your own.
      kept: teachers' outputs that several runs of this process share: this run reads
        them, and adds those that it computes.

    Returns:
      The table's rows; empty where the run was finished before.

    Raises:
      BitflaxError: bad input, before the first step; or as its subclasses say.
      KeyboardInterrupt: asked to stop; everything is saved.
    """
    check_plan(recipe, until)
    with rare_collections(), files.threads_heard(out), RunFolder(out, on_log) as folder:
        began = training.broadcast(lambda: folder.began)
        recipe = with_dtypes(recipe, began)
        forked = recorded(files.given(fork)) if fork is not None else {}
        recipe = with_rate(recipe, began or forked)
        known = resolved(recipe)
        folder.write_recipe(source, known, overrides)
        if fork is not None:
            take_finished(files.given(fork), folder, known)
        if folder.finished:
            say(f"{folder.path} is finished: see report.html there")
            return []
        with training.compiled_for_user(folder.cache / "compiled"):
            experiment = prepare(recipe, folder)
            if kept is not None and experiment.student_data is not None:
                experiment.student_data.kept_outputs = kept
            return _run(experiment, until)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python collect garbage a seventieth as often while the ``with`` lasts.

    With jax imported, each collection visits some hundred thousand objects, and reading
    data or tracing a model makes objects by the ten thousand: a sixth of a run's start
    was spent on garbage that was not there.

    >>> before = gc.get_threshold()
    >>> with rare_collections():
    ...     gc.get_threshold()
    (50000, 20, 20)
    >>> gc.get_threshold() == before
    True
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _run(experiment: Experiment, until: str | None) -> list[report.Row]:
    """Run all stages that are not done yet; print the table and return its rows."""
    judge = make_judge(experiment)
    for simple in judge.baselines:
        if simple.score is not None:
            say_scores(simple.name, {judge.metric: simple.score})
    done = {"teacher": _run_teacher(experiment)}
    names = [stage.name for stage in experiment.recipe.stages]
    for number, name in enumerate(names, 1):
        if until in done:
            break
        done[name] = run_stage(experiment, number, done)
    rows = judge.judged([result.row for result in done.values()])
    warnings = [*judge.warnings(rows)]
    ended = len(done) > len(names) and (until is None or until in names[-1:])
    if ended:
        last, teacher = [*done.values()][-1].model, done["teacher"].model
        rows, warnings = finish(experiment, rows, last, judge, teacher)
    metric = experiment.student_data.metric if experiment.student_data else "loss"
    if training.is_main_process():
        print(report.table(rows, metric, judge.baselines))
        for warning in warnings:
            progress.tell(warning)
        if ended:
            print(f"\n{run_summary(experiment)}")
    return rows


def _run_teacher(experiment: Experiment) -> Result:
    """Return the teacher and its scores; it is fine-tuned here unless it came so."""
    taught, data = experiment.recipe.teacher, experiment.teacher_data
    folder = model.resolve_folder(taught.model)
    found, scores, seconds = experiment.teacher, {}, 0.0
    if data is not None and taught.folder is not None:
        scores, seconds = _score_teacher(experiment, data)
    elif data is not None:
        loss, classes = label_loss(taught, data.task), len(data.task.labels)
        stage = fine_tuning(taught, loss, classes)
        found, scores, seconds = train_stage(
            experiment, data, 0, stage, None, lambda: experiment.teacher
        )
        folder = experiment.run.stage(0, "teacher") / "params"
    score = scores[data.metric] if data else None
    row = report.Row("teacher", score, score and 1.0, 32, weight_bytes(folder), seconds)
    if scores:
        say_scores("teacher", scores)
    return Result(found, row)


def fine_tuning(taught: Teacher, loss: LossFn, classes: int) -> Stage:
    """Return a teacher's training as a stage: of labels, by itself.

    Args:
      taught: its settings.
      loss: of the labels.
      classes: how many the task has; 0: a real number.
    """
    return Stage(
        name="teach",
        loss=distillation.weighted(labels=(1.0, loss)),
        optim=planned_optim(taught, classes),
        epochs=taught.epochs,
        steps=taught.steps,
        evals=taught.evals,
        keep=taught.keep,
        patience=taught.patience,
        dtype=taught.dtype,
    )


def _score_teacher(
    experiment: Experiment, data: TaskData
) -> tuple[dict[str, float], float]:
    """Return the scores of a teacher that came fine-tuned, and the seconds it took."""
    began = time.monotonic()
    scorer, params = data.scorer_of(experiment.teacher)
    scores = scorer(params)
    if experiment.teacher.config.id2label is None:
        check_order(experiment, scorer.logits(params))
    return scores, time.monotonic() - began


def label_loss(taught: Teacher, task: Task) -> LossFn:
    """Return what a teacher's fine-tuning minimises."""
    if task.regression:
        return distillation.label_mse
    given: dict[str, Any] = {}
    if taught.smoothing:
        given["smoothing"] = taught.smoothing
    if taught.balanced:
        assert task.train.labels is not None  # `prepare` checked
        counts = np.bincount(task.train.labels, minlength=len(task.labels))
        given["class_weights"] = tuple(np.mean(counts) / np.maximum(counts, 1))
    loss = distillation.label_cross_entropy
    return functools.partial(loss, **given) if given else loss


def run_stage(
    experiment: Experiment, number: int, done: Mapping[str, Result]
) -> Result:
    """Build a stage's first student, train and score it, and write its ``params/``.

    Args:
      experiment: what all stages share, from ``prepare``.
      number: the stage's, from 1.
      done: the results so far by name: the teacher's, then each earlier stage's.
    """
    stage = experiment.recipe.stages[number - 1]
    data, fine_tuned = experiment.data_of(stage), done["teacher"]
    teacher, first = done[stage.teacher].model, fine_tuned.model
    if stage.corpus is not None:
        teacher = first = experiment.corpus_data.teacher
    before = first if number == 1 else list(done.values())[-1].model
    begin = functools.partial(
        _initial_model, experiment, number, teacher.config, before, first
    )
    found, scores, seconds = train_stage(
        experiment, data, number, stage, teacher, begin
    )
    weights = experiment.run.stage(number, stage.name) / "params" / "model.safetensors"
    # Latent weights are float32 whatever the bits: only the packed file's size counts.
    size = None if stage.rules else weights.stat().st_size
    # A loss is no score of the task, and a head that nothing trained has none.
    scored = experiment.student_data is None or (
        stage.corpus is None and _trains_logits(stage, teacher, found, data, number)
    )
    score = scores[data.metric] if scored else None
    kept = score and kept_share(score, fine_tuned.row.score)
    bits = weight_bits(stage, found.params)
    row = report.Row(stage.name, score, kept, bits, size, seconds)
    say_scores(stage.name, scores if scored or stage.corpus else {})
    return Result(found, row)


def _initial_model(
    experiment: Experiment,
    number: int,
    teacher: BertConfig,
    previous: Model,
    first: Model,
) -> Model:
    """Return the student that a stage starts from.

    ``previous`` and ``first`` are what an ``Init`` calls ``"previous"`` and
    ``"teacher"``; ``teacher`` is the shape of the stage's own.
    """
    init = experiment.recipe.stages[number - 1].init
    key = experiment.key(number)
    source = {"previous": previous, "teacher": first}.get(init.source)
    if source is None:
        source = loaded_model(init.source, first.config, key)
    config, params = initialization.initial_student(
        init,
        source,
        key,
        lambda whole: initialization.measured_importance(experiment.task_data, whole),
    )
    return Model(config, initialization.with_projection(params, config, teacher, key))


def _trains_logits(
    stage: Stage, teacher: Model, student: Model, data: StageData, number: int
) -> bool:
    """Whether a stage's loss reads the student's logits."""
    batch = data.batches(number, stage).batch(0)
    said, told = output_shapes(stage, teacher, student, batch)

    def swapped(told: Any, said: Any, batch: Any) -> Any:
        return stage.loss(said, told, batch)

    return "logits" in distillation.used_outputs(swapped, told, said, batch)
