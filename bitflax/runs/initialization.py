"""The model that a stage begins with: layers, another shape, halves, learned clips."""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bitflax import distillation, model, quantization, trees
from bitflax.recipe import Init, Stage
from bitflax.runs import experiment
from bitflax.runs.experiment import TaskData
from bitflax.types import Batch, BertConfig, Mean, Model, Params


def initial_student(
    init: Init,
    teacher: Model,
    before: Model,
    key: jax.Array,
    judge: Callable[[Model], distillation.Importance],
) -> Model:
    """Return the model that a stage begins with, but for its learned activations.

    Args:
      init: where it comes from.
      teacher: the task's.
      before: the model of the stage before; the teacher for the first.
      key: what is drawn at random comes from it.
      judge: tells how important a model's heads and neurons are.
    """
    chosen = {"previous": before, "teacher": teacher}.get(init.source)
    if chosen is None:
        chosen = experiment.loaded_model(init.source, teacher.config, key)
    config, params = init.config(chosen.config), chosen.params
    if init.shape is not None:
        params = model.init_params(config, key)
    elif init.layers is not None:
        params = distillation.take_layers(params, init.layers)
    if init.width is not None:
        depth_alone = dataclasses.replace(init, width=None).config(chosen.config)
        judged = judge(Model(depth_alone, params))
        params = distillation.take_width(params, *init.width, judged)
    if init.split:
        params = quantization.split(params, init.split)
    return Model(config, params)


def with_projection(
    params: Params, config: BertConfig, teacher: BertConfig, key: jax.Array
) -> Params:
    """Return the parameters with a projection just where who teaches is wider.

    One that fits goes on being learned.
    """
    narrow, wide = config.hidden_size, teacher.hidden_size
    held = params.get(distillation.PROJECTION)
    if narrow == wide:
        return {
            name: p for name, p in params.items() if name != distillation.PROJECTION
        }
    if held is not None and held["bias"].shape == (wide,):
        return params
    return distillation.add_projection(params, key, narrow, wide)


def fit_act(small: Model, stage: Stage, before: model.Act, batch: Batch) -> Params:
    """Return the parameters with those that learned activation quantizers need.

    Those of the stage before go on where its quantizers were the same; else they are
    made anew from what a first batch gives with quantised weights.

    Args:
      small: the student.
      stage: whose quantizers it will have.
      before: the quantizers of the stage before.
      batch: a first batch.
    """
    config, flat = small.config, trees.flatten(small.params)
    held = {path for path in flat if re.fullmatch(model.ACT_PARAMS, path)}
    at = model.at_sites(stage.act, config)
    wanted = {site for site, fn in at.items() if model.learns(fn)}
    if stage.act == before and wanted == held:
        return small.params
    if wanted:
        quantize = functools.partial(quantization.quantize, rules=stage.rules)
        return model.init_act(small.params, stage.act, batch, config, quantize)
    return trees.unflatten({p: leaf for p, leaf in flat.items() if p not in held})


BATCHES = 16


def judged_importance(lesson: TaskData, whole: Model) -> distillation.Importance:
    """Return the importance of a fine-tuned model's heads and neurons.

    The loss is that of the labels; where the data have none, that of the model's own
    predictions.

    Args:
      lesson: the task.
      whole: the model, before its width is cut.
    """
    small = lesson.small(whole)
    apply, config = model.bert(small.config), small.config
    batches = lesson.batches(0)
    label = (
        distillation.label_mse
        if config.regression
        else distillation.label_cross_entropy
    )

    def loss(params: Params, batch: Batch) -> Mean:
        out = apply(params, batch)
        if "labels" not in batch:
            said = jax.lax.stop_gradient(out.logits)
            # Its own number would leave no gradient; any other gives the number's.
            own = said[:, 0] + 1 if config.regression else jnp.argmax(said, axis=-1)
            batch = {**batch, "labels": own}
        return label(out, None, batch)

    count = min(BATCHES, batches.steps_per_epoch)
    some = (batches.batch(i) for i in range(count))
    return distillation.importance(loss, small.params, some, config.num_attention_heads)
