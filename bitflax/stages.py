"""A recipe's run: teacher, stages, packed file, report; each goes on where it stopped.

Everything that can be checked is checked before the first step.
"""

import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from bitflax import (
    compiling,
    loop,
    losses,
    memory,
    model,
    parallel,
    pretrained,
    report,
    storage,
    teaching,
    training,
    vocabulary,
)
from bitflax.ending import (
    Result,
    ending,
    evaluator,
    kept_share,
    say_scores,
    weight_files,
)
from bitflax.prepare import prepare
from bitflax.recipe import Recipe, Stage, check_until
from bitflax.resolving import resolved
from bitflax.rules import bits_of, quantize
from bitflax.runfolder import RunFolder
from bitflax.setting import Model, Setting


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    until: str | None = None,
    source: str = "",
    overrides: Sequence[str] = (),
) -> list[report.Row]:
    """Run a recipe in a folder, or go on with it; print the table at the end.

    Args:
      recipe: from ``bitflax.load_recipe``.
      out: the run folder; the same recipe again goes on where it stopped, and a
        finished run is left as it is.
      until: stop after this stage (``"teacher"`` or a stage's name).
      source: the recipe file's text, kept in the folder.
      overrides: what was changed in it, kept too.

    Returns:
      The table's rows; empty where the run was finished before.

    Raises:
      BitflaxError: bad input, before the first step; or as its subclasses say.
      KeyboardInterrupt: asked to stop; everything is saved.
    """
    check_until(recipe, until)
    memory.keep_freed_pages()
    with RunFolder(out) as folder:
        folder.write_recipe(source, resolved(recipe), overrides)
        if folder.finished:
            print(f"{folder.path} is finished: see report.html there", file=sys.stderr)
            return []
        with compiling.kept_in(folder.cache / "compiled"):
            return _run(prepare(recipe, folder), until)


def _run(setting: Setting, until: str | None) -> list[report.Row]:
    """Run what is left of all stages; return and print the table."""
    stages = setting.recipe.stages
    rows, names = [], ["teacher", *(stage.name for stage in stages)]
    teacher = result = _teacher(setting)
    for number, name in enumerate(names):
        if number:
            stage = stages[number - 1]
            result = run_stage(setting, number, stage, teacher, result.model)
        rows.append(result.row)
        if name == until:
            break
    else:
        rows += ending(setting, rows, teacher, result)
    print(report.table(rows, setting.task.metric))
    return rows


def _teacher(setting: Setting) -> Result:
    """Return the teacher, fine-tuned here if need be, and scored."""
    taught = setting.recipe.teacher
    if taught.folder is not None:
        began = time.monotonic()
        small = setting.small(setting.teacher)
        scores = evaluator(setting, small.config)(small.params)
        seconds, found = time.monotonic() - began, setting.teacher
        folder = pretrained.resolve(taught.folder)
    else:
        real = setting.task.regression
        label = losses.label_mse if real else losses.label_cross_entropy
        stage = Stage(
            name="teach",
            loss=losses.weighted(labels=(1.0, label)),
            optim=taught.optim,
            epochs=taught.epochs,
            evals=taught.evals,
        )
        place = setting.run.stage(0, "teacher")
        found, scores, seconds = _trained(
            setting, 0, "teacher", stage, None, setting.teacher
        )
        folder = place / "params"
    size = sum(p.stat().st_size for p in weight_files(folder))
    row = report.Row("teacher", scores[setting.task.metric], 1.0, 32, size, seconds)
    say_scores("teacher", scores)
    return Result(found, scores, seconds, row)


def run_stage(
    setting: Setting, number: int, stage: Stage, teacher: Result, before: Model
) -> Result:
    """Run one stage: where it starts, its training, its score, its ``params/``.

    Args:
      setting: what all stages share, from ``prepare``.
      number: the stage's, from 1.
      stage: what to do.
      teacher: who teaches.
      before: the model of the stage before; the teacher's for the first.
    """
    start = setting.start(stage, teacher.model, before)
    found, scores, seconds = _trained(
        setting, number, stage.name, stage, teacher.model, start
    )
    score = scores[setting.task.metric]
    bits = min((bits_of(q) or 0 for _, q in stage.rules), default=32) or None
    weights = setting.run.stage(number, stage.name) / "params" / "model.safetensors"
    # Latent weights are float32 whatever the bits: only the packed file's size counts.
    size = None if stage.rules else weights.stat().st_size
    kept = kept_share(score, teacher.row.score)
    row = report.Row(stage.name, score, kept, bits, size, seconds)
    say_scores(stage.name, scores)
    return Result(found, scores, seconds, row)


def _trained(
    setting: Setting,
    number: int,
    name: str,
    stage: Stage,
    teacher: Model | None,
    start: Model,
) -> tuple[Model, dict[str, float], float]:
    """Return the trained model, its scores and seconds; from disk if it was done."""
    folder = setting.run.stage(number, name)
    done = folder / "result.json"
    if done.is_file():
        record = json.loads(done.read_text("utf-8"))
        config, params = pretrained.load_pretrained(folder / "params")
        return Model(config, params), record["scores"], record["seconds"]
    began = time.monotonic()
    batches = setting.batches(number, stage.batch_size)
    small = setting.small(start)
    scorer = evaluator(setting, small.config, stage)
    step, batch, teacher_params = _step(setting, stage, teacher, small, batches)
    steps = stage.epochs * batches.steps_per_epoch
    setup = time.monotonic() - began
    optimizer = training.make_optimizer(stage.optim, steps)
    key = jax.random.fold_in(jax.random.key(setting.recipe.seed), number)
    state = training.init_state(small.params, optimizer, key=key)
    work = loop.Training(
        name=folder.name,
        folder=folder,
        steps=steps,
        batch=batch,
        step=lambda state, batch: step(state, teacher_params, batch),
        evaluate=scorer,
        metric=setting.task.metric,
        eval_every=-(-steps // stage.evals),
        rate=training.learning_rate(stage.optim, steps),
        keep=stage.keep,
        place=f"stages.{name}" if number else "teacher",
    )
    trained = loop.train(work, state, setting.run)
    seconds = setup + trained.seconds
    params = vocabulary.grow(trained.params, start.params, setting.used)
    pretrained.save_pretrained(
        folder / "params", start.config, params, setting.tokenizer
    )
    record = {"scores": trained.scores, "seconds": seconds, "steps": steps}
    storage.write_text(done, json.dumps(record, indent=2) + "\n")
    return Model(start.config, params), trained.scores, seconds


def _step(setting: Setting, stage: Stage, teacher: Model | None, start: Model, batches):
    """Return the mapped step, its batch function, and what it gets as a teacher."""
    steps = stage.epochs * batches.steps_per_epoch
    apply = model.bert(start.config, stage.act)
    kept, teach = None, None
    if teacher is not None:
        teacher = setting.small(teacher)
        teach = model.bert(teacher.config)
        kept = setting.kept(stage, teacher, start, batches)
    step = training.make_train_step(
        apply,
        teach if kept is None else teaching.reader(kept.outputs),
        stage.loss,
        training.make_optimizer(stage.optim, steps),
        quantize=functools.partial(quantize, rules=stage.rules, lazy=True)
        if stage.rules
        else None,
    )

    def batch(number: int) -> dict[str, np.ndarray]:
        found = batches.batch(number)
        found = found if kept is None else kept.add_to(found)
        return {name: x for name, x in found.items() if name != "index"}

    mapped = parallel.data_parallel(step, setting.mesh)
    params = None
    if teacher is not None and kept is None:
        params = parallel.replicate(teacher.params, setting.mesh)
    return mapped, batch, params
