"""A recipe's run: teacher, stages, packed file, report; each goes on where it stopped.

Everything that can be checked is checked before the first step.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from bitflax import distillation, files, manifests, model, progress, training
from bitflax.data import Task
from bitflax.errors import DamagedFile, InputMissing
from bitflax.recipe import Recipe, Stage, Teacher, check_plan, resolved
from bitflax.runs import findings, initialization, report
from bitflax.runs.ending import ending
from bitflax.runs.experiment import Experiment, StageData, loaded_model, stored_values
from bitflax.runs.folder import RESULT, RunFolder
from bitflax.runs.fork import take_finished
from bitflax.runs.garbage import rare_collections
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
    weight_files,
)
from bitflax.runs.surroundings import precise
from bitflax.types import LossFn, Model, Params


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
        one the student is packed as ever.
      source: the recipe file's text, kept in the folder.
      overrides: what was changed in it, kept too.
      fork: another run's folder: what it has finished is taken over, up to the first
        stage that differs.
      on_log: called with every line of the log, a flat dict (``stage``, ``step``,
        ``loss/loss``, ``dev/accuracy``, ``lr``), for a logger of your own.
      kept: teachers' outputs that other runs of this process kept, and these too then.

    Returns:
      The table's rows; empty where the run was finished before.

    Raises:
      BitflaxError: bad input, before the first step; or as its subclasses say.
      KeyboardInterrupt: asked to stop; everything is saved.
    """
    check_plan(recipe, until)
    with rare_collections(), files.threads_heard(out), RunFolder(out, on_log) as folder:
        began = training.broadcast(lambda: folder.record.get("recipe", {}))
        recipe = precise(recipe, began)
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


def _run(experiment: Experiment, until: str | None) -> list[report.Row]:
    """Run what is left of all stages; return and print the table."""
    judge = make_judge(experiment)
    for simple in judge.baselines:
        if simple.score is not None:
            say_scores(simple.name, {judge.metric: simple.score})
    done = {"teacher": _teacher(experiment)}
    names = [stage.name for stage in experiment.recipe.stages]
    for number, name in enumerate(names, 1):
        if until in done:
            break
        done[name] = run_stage(experiment, number, done)
    rows = judge.judged([result.row for result in done.values()])
    warnings = [*judge.warnings(rows)]
    ended = len(done) > len(names) and (until is None or until in names[-1:])
    if ended:
        last = list(done.values())[-1]
        rows, warnings = finish(experiment, rows, last, judge, done["teacher"].model)
    metric = experiment.student_data.metric if experiment.student_data else "loss"
    if training.is_main_process():
        print(report.table(rows, metric, judge.baselines))
        for warning in warnings:
            progress.tell(warning)
        if ended:
            print(f"\n{ending(experiment)}")
    return rows


def _teacher(experiment: Experiment) -> Result:
    """Return the teacher, fine-tuned here if need be, and scored."""
    taught, data = experiment.recipe.teacher, experiment.teacher_data
    name = taught.model
    found, scores, seconds = experiment.teacher, {}, 0.0
    if data is not None and taught.folder is not None:
        began = time.monotonic()
        small = data.small(found)
        scorer = data.scorer(None, small.config)
        scores = scorer(small.params)
        if found.config.id2label is None:
            check_order(experiment, scorer.logits(small.params))
        seconds = time.monotonic() - began
    elif data is not None:
        stage = Stage(
            name="teach",
            loss=distillation.weighted(labels=(1.0, label_loss(taught, data.task))),
            optim=taught.optim,
            epochs=taught.epochs,
            steps=taught.steps,
            evals=taught.evals,
            keep=taught.keep,
            patience=taught.patience,
            dtype=taught.dtype,
        )
        found, scores, seconds = _trained(
            experiment, data, 0, "teacher", stage, None, lambda: experiment.teacher
        )
        name = experiment.run.stage(0, "teacher") / "params"
    size = sum(p.stat().st_size for p in weight_files(model.resolve_folder(name)))
    score = scores[data.metric] if data else None
    row = report.Row("teacher", score, score and 1.0, 32, size, seconds)
    if scores:
        say_scores("teacher", scores)
    return Result(found, scores, seconds, row)


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
    """Run one stage: where it starts, its training, its score, its ``params/``.

    Args:
      experiment: what all stages share, from ``prepare``.
      number: the stage's, from 1.
      done: the teacher's result, then those of the stages before, by name.
    """
    stage = experiment.recipe.stages[number - 1]
    data, fine_tuned = experiment.data_of(stage), done["teacher"]
    teacher, first = done[stage.teacher].model, fine_tuned.model
    if stage.corpus is not None:
        teacher = first = experiment.corpus_data.teacher
    before = first if number == 1 else list(done.values())[-1].model

    def start() -> Model:
        key = jax.random.fold_in(jax.random.key(experiment.recipe.seed), number)
        source = {"previous": before, "teacher": first}.get(stage.init.source)
        if source is None:
            source = loaded_model(stage.init.source, first.config, key)
        config, params = initialization.initial_student(
            stage.init,
            source,
            key,
            lambda whole: initialization.measured_importance(
                experiment.task_data, whole
            ),
        )
        fit = initialization.with_projection(params, config, teacher.config, key)
        return Model(config, fit)

    found, scores, seconds = _trained(
        experiment, data, number, stage.name, stage, teacher, start
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
    return Result(found, scores, seconds, row)


def _trains_logits(
    stage: Stage, teacher: Model, student: Model, data: StageData, number: int
) -> bool:
    """Whether a stage's loss reads the student's logits."""
    batch = data.batches(number, stage).batch(0)
    apply = distillation.projected(model.bert(student.config, stage.act))
    said = jax.eval_shape(apply, student.params, batch)
    told = jax.eval_shape(model.bert(teacher.config), teacher.params, batch)

    def turned(told: Any, said: Any, batch: Any) -> Any:
        return stage.loss(said, told, batch)

    return "logits" in distillation.used_outputs(turned, told, said, batch)


def _trained(
    experiment: Experiment,
    data: StageData,
    number: int,
    name: str,
    stage: Stage,
    teacher: Model | None,
    begin: Callable[[], Model],
) -> tuple[Model, dict[str, float], float]:
    """Return the trained model, its scores and seconds; from disk if it was done."""
    folder = experiment.run.stage(number, name)
    done = folder / "result.json"
    if training.broadcast(done.is_file):
        found, record = _finished(folder / "params", done)
        return found, record["scores"], record["seconds"]
    began = time.monotonic()
    start = begin()
    batches = data.batches(number, stage)
    small = _with_act(experiment, number, stage, data.small(start), batches)
    scorer = data.scorer(stage, small.config)
    steps = data.steps(stage, batches)
    optimizer = training.make_optimizer(stage.optim, steps)
    step, batch, teacher_params = _step(
        experiment, data, stage, teacher, small, batches, optimizer, steps
    )
    setup = time.monotonic() - began
    key = jax.random.fold_in(jax.random.key(experiment.recipe.seed), number)
    state = training.init_state(small.params, optimizer, key=key)
    state = training.replicate(state, experiment.mesh)

    def programs() -> Iterator[training.Program]:
        # By their first calls; those of a corpus have one shape.
        firsts = [0] if stage.corpus else batches.first_steps()
        for shapes in (training.described(batch(i)) for i in firsts if i < steps):
            args = training.described((state, teacher_params))
            yield training.Program(step, (*args, shapes))
        yield from scorer.programs(state.params)

    work = training.Training(
        name=folder.name,
        folder=folder,
        steps=steps,
        batch=batch,
        step=lambda state, batch: step(state, teacher_params, batch),
        evaluate=scorer,
        programs=programs,
        metric=data.metric,
        eval_every=-(-steps // stage.evals),
        rate=jax.jit(training.learning_rate(stage.optim, steps)),
        keep=stage.keep,
        patience=stage.patience,
        watch=findings.watch(small.params, stage.rules),
        place=f"stages.{name}" if number else "teacher",
    )
    trained = training.train(work, state, experiment.run)
    seconds = setup + trained.seconds
    params = data.whole(training.to_local(trained.params), start.params)
    if training.is_main_process():
        model.save_pretrained(
            folder / "params", start.config, params, experiment.tokenizer, extra=True
        )
        manifests.write_manifest(folder / "params", {})
        whole = manifests.sha256(folder / "params" / files.MANIFEST)
        record = {"scores": trained.scores, "seconds": seconds, "steps": trained.steps}
        manifests.write_sealed(done, record | {"params": whole})
        for at, seen in ((0, start.params), (trained.steps, params)):
            experiment.run.board.weights(folder.name, at, seen)
    training.barrier()
    return Model(start.config, params), trained.scores, seconds


def _finished(folder: Path, done: Path) -> tuple[Model, dict[str, Any]]:
    """Return a finished stage's model and what it scored, both as they were written."""
    try:
        record = manifests.read_sealed(done, earlier=RESULT)
        manifest = folder / files.MANIFEST
        written = record.get("params")  # none of an earlier bitflax
        if written and not (
            manifest.is_file() and manifests.sha256(manifest) == written
        ):
            raise DamagedFile(manifest, "it is not what was written", fix="")
        return Model(*model.load_pretrained(folder)), record
    except (DamagedFile, InputMissing) as error:
        fix = f"move {done} away: the same command then goes on with the stage"
        raise DamagedFile(error.place, error.problem, fix=fix) from error


def _with_act(
    experiment: Experiment, number: int, stage: Stage, small: Model, batches: Any
) -> Model:
    """Return the model with the parameters of its learned activation quantizers."""
    earlier = experiment.recipe.stages[: max(number - 1, 0)]
    before = earlier[-1].act if earlier else None
    batch = batches.batch(0)
    # How many rows only fill up depends on the devices.
    batch = {name: x[batch["weight"] > 0] for name, x in batch.items()}
    params = initialization.fit_act(small, stage, before, batch)
    return small._replace(params=params)


def _step(
    experiment: Experiment,
    data: StageData,
    stage: Stage,
    teacher: Model | None,
    start: Model,
    batches: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
):
    """Return the mapped step, its batch function, and what it gets as a teacher."""
    student = model.bert(
        start.config, stage.act, dtype=stage.dtype, recompute=stage.recompute
    )
    apply = distillation.projected(student)
    kept, teach = None, None
    if teacher is not None:
        teacher = data.small(teacher)
        teach = model.bert(teacher.config, dtype=stage.teacher_dtype)
        kept = data.kept(stage, teacher, start, batches)
    stored = stored_values(stage, experiment.recipe.rest, lazy=True)

    def values(latent: Params) -> Params:
        latent = training.stop_frozen(latent, stage.optim)
        return latent if stored is None else stored(latent)

    step = training.make_train_step(
        apply,
        teach if kept is None else distillation.outputs_reader(kept.outputs),
        stage.loss,
        optimizer,
        quantize=values,
        accumulate=stage.accumulate,
    )

    def batch(number: int) -> Mapping[str, Any]:
        found = batches.batch(number, training.process_part())
        found = found if kept is None else kept.add_to(found)
        # The step of one process itself shares rows out.
        many = training.process_part()[1] > 1
        return training.shard_batch(found, experiment.mesh) if many else found

    positions = steps * batches.batch(0)["input_ids"].size // experiment.mesh.size
    flop = 3 * model.forward_flop(start.config, positions)
    if teacher is not None and kept is None:
        flop += model.forward_flop(teacher.config, positions)
    options = model.compiler_options(flop)
    mapped = training.data_parallel(step, experiment.mesh, options)
    mapped = training.Ahead(mapped)
    params = None
    if teacher is not None and kept is None:
        params = training.replicate(teacher.params, experiment.mesh)
    return mapped, batch, params
