"""One stage's training: its step, its evaluations, and its result on the disk."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from bitflax import distillation, files, manifests, model, training
from bitflax.data import Batches, Tokenizer
from bitflax.errors import DamagedFile, InputMissing
from bitflax.packed import Rest
from bitflax.recipe import Stage
from bitflax.runs import findings, initialization
from bitflax.runs.experiment import Experiment, StageData, stored_values
from bitflax.runs.folder import RESULT
from bitflax.types import ApplyFn, BertConfig, Model, Params


def train_stage(
    experiment: Experiment,
    data: StageData,
    number: int,
    stage: Stage,
    teacher: Model | None,
    begin: Callable[[], Model],
) -> tuple[Model, dict[str, float], float]:
    """Train a stage, or read its result where an earlier run has trained it.

    Args:
      experiment: what all stages share.
      data: what the stage learns from.
      number: the stage's, from 1; 0: the teacher's fine-tuning.
      stage: its settings.
      teacher: None: there is none, as in fine-tuning.
      begin: makes the model that training starts from.

    Returns:
      The trained model, its scores, and the seconds that training took.
    """
    name = stage.name if number else "teacher"
    folder = experiment.run.stage(number, name)
    if training.broadcast((folder / "result.json").is_file):
        return _read_result(folder)
    began = time.monotonic()
    start = begin()
    batches = data.batches(number, stage)
    small = _with_act(experiment, number, stage, data.shrink(start), batches)
    scorer = data.scorer(stage, small.config)
    steps = experiment.run.planned(folder.name, data.steps(stage, batches))
    optimizer = training.make_optimizer(stage.optim, steps)
    step, batch, teacher_params = _make_step(
        experiment, data, stage, teacher, small, batches, optimizer, steps
    )
    setup = time.monotonic() - began
    key = experiment.key(number)
    state = training.init_state(small.params, optimizer, key=key)
    state = training.replicate(state, experiment.mesh)

    def programs() -> Iterator[training.Program]:
        # Each batch shape is a program of its own; a corpus has one shape.
        firsts = batches.first_steps() if isinstance(batches, Batches) else [0]
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
        watch=findings.sign_flips(small.params, stage.rules),
        place=f"stages.{name}" if number else "teacher",
    )
    trained = training.train(work, state, experiment.run)
    seconds = setup + trained.seconds
    found = Model(
        start.config, data.grow(training.to_local(trained.params), start.params)
    )
    if training.is_main_process():
        record = {"scores": trained.scores, "seconds": seconds, "steps": trained.steps}
        _write_result(folder, found, experiment.tokenizer, record)
        for at, seen in ((0, start), (trained.steps, found)):
            experiment.run.tensorboard.weights(folder.name, at, seen.params)
    training.barrier()
    return found, trained.scores, seconds


def _write_result(
    folder: Path, found: Model, tokenizer: Tokenizer, record: Mapping[str, Any]
) -> None:
    """Write a stage's ``params/``, then ``result.json``, which says that it is done."""
    params = folder / "params"
    model.save_pretrained(params, *found, tokenizer, extra=True)
    manifests.write_manifest(params, {})
    whole = manifests.sha256(params / files.MANIFEST)
    manifests.write_sealed(folder / "result.json", {**record, "params": whole})


def _read_result(folder: Path) -> tuple[Model, dict[str, float], float]:
    """Return a finished stage's model, scores and seconds, as they were written."""
    done, manifest = folder / "result.json", folder / "params" / files.MANIFEST
    try:
        record = manifests.read_sealed(done, earlier=RESULT)
        written = record.get("params")  # an earlier bitflax wrote none
        if written and not (
            manifest.is_file() and manifests.sha256(manifest) == written
        ):
            raise DamagedFile(manifest, "it is not what was written", fix="")
        found = Model(*model.load_pretrained(folder / "params"))
        return found, record["scores"], record["seconds"]
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
    # Without filler rows: how many there are depends on the number of devices.
    batch = {name: x[batch["weight"] > 0] for name, x in batch.items()}
    params = initialization.fit_act(small, stage, before, batch)
    return small._replace(params=params)


def stage_step(
    stage: Stage,
    rest: Rest,
    config: BertConfig,
    teach: ApplyFn | None,
    optimizer: optax.GradientTransformation,
) -> Callable[..., Any]:
    """Return the train step of a stage, un-jitted.

    Args:
      stage: its settings.
      rest: how what no rule matches will be packed.
      config: the student's.
      teach: the teacher, or what reads its kept outputs; None: fine-tuning.
      optimizer: the stage's.
    """
    student = model.bert(
        config, stage.act, dtype=stage.dtype, recompute=stage.recompute
    )
    stored = stored_values(stage, rest)

    def values(latent: Params) -> Params:
        latent = training.stop_frozen(latent, stage.optim)
        return latent if stored is None else stored(latent)

    return training.make_train_step(
        distillation.projected(student),
        teach,
        stage.loss,
        optimizer,
        quantize=values,
        accumulate=stage.accumulate,
    )


def _make_step(
    experiment: Experiment,
    data: StageData,
    stage: Stage,
    teacher: Model | None,
    start: Model,
    batches: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
):
    """Return the train step mapped over the devices, and its inputs.

    Returns:
      The step, ``(state, teacher_params, batch) -> (state, metrics)``; a function of
      the step's number that returns its batch; and the ``teacher_params``, None where
      there is no teacher or its kept outputs stand in for it.
    """
    kept, teach = None, None
    if teacher is not None:
        teacher = data.shrink(teacher)
        teach = model.bert(teacher.config, dtype=stage.teacher_dtype)
        kept = data.teacher_outputs(stage, teacher, start, batches)
    teach = teach if kept is None else distillation.outputs_reader(kept.outputs)
    step = stage_step(stage, experiment.recipe.rest, start.config, teach, optimizer)

    def batch(number: int) -> Mapping[str, Any]:
        found = batches.batch(number, training.process_part())
        found = found if kept is None else kept.add_to(found)
        # With one process, the step itself shards the rows.
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
