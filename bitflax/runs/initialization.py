"""The student that a stage starts from: layers taken, width cut, matrices split."""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bitflax import distillation, model, quantization, trees
from bitflax.recipe import Init, Stage
from bitflax.runs.experiment import TaskData
from bitflax.types import Batch, BertConfig, Mean, Model, Params


def initial_student(
    init: Init,
    source: Model,
    key: jax.Array,
    importance: Callable[[Model], distillation.Importance] | None = None,
) -> Model:
    """Return what an ``Init`` makes of a model.

    Args:
      init: which layers and width are taken, what is drawn at random, what is split.
      source: the model that it starts from; where its leaves are
        ``jax.ShapeDtypeStruct``, so are the result's, and nothing is computed.
      key: for what is drawn at random.
      importance: measures how important a model's heads and neurons are; None: the
        first ones are taken.

    Raises:
      BitflaxError: the model has no such layers, heads or neurons.
      ValueError: the model is split already, and would be split or cut in width.
    """
    config, params = init.config(source.config), source.params
    shapes = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
    make = jax.eval_shape if shapes else lambda fn, *args: fn(*args)
    if init.shape is not None:
        params = make(functools.partial(model.init_params, config), key)
    elif init.layers is not None:
        params = distillation.take_layers(params, init.layers)
    if any(isinstance(p, model.Split) for p in trees.flatten(params).values()):
        if init.width is not None:
            raise ValueError("init.width: cut the width before matrices are split")
        if init.split:
            raise ValueError("init.split: the student is split already")
    if init.width is not None:
        heads, neurons = init.width
        whole = dataclasses.replace(init, width=None).config(source.config)
        judged = importance and importance(Model(whole, params))
        take = functools.partial(
            distillation.take_width,
            heads=heads,
            ffn=neurons,
            importance=judged,
            head_size=whole.head_width,
        )
        params = make(take, params)
    if init.split:
        params = quantization.split(params, init.split)
    return Model(config, params)


def with_projection(
    params: Params, config: BertConfig, teacher: BertConfig, key: jax.Array
) -> Params:
    """Return the parameters with a projection exactly where the teacher is wider.

    A projection that fits already is kept, and goes on learning.
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
    """Return the parameters with those of learned activation quantizers.

    Where the stage before had the same quantizers, theirs are kept; else they are
    initialised from the activations of a first batch, with quantised weights.

    Args:
      small: the student.
      stage: the stage whose quantizers it gets.
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
"""As many measure how important heads and neurons are."""


def measured_importance(task: TaskData, whole: Model) -> distillation.Importance:
    """Return the importance of a fine-tuned model's heads and neurons.

    The loss is that of the labels; where the data have none, that of the model's own
    predictions.

    Args:
      task: the data.
      whole: the model before its width is cut.
    """
    small = task.shrink(whole)
    apply, config = model.bert(small.config), small.config
    batches = task.batches(0)
    real = config.regression
    label = distillation.label_mse if real else distillation.label_cross_entropy

    def loss(params: Params, batch: Batch) -> Mean:
        out = apply(params, batch)
        if "labels" not in batch:
            said = jax.lax.stop_gradient(out.logits)
            # Against its own number, an MSE has no gradient: 1 away, it has that of
            # the number.
            own = said[:, 0] + 1 if real else jnp.argmax(said, axis=-1)
            batch = {**batch, "labels": own}
        return label(out, None, batch)

    count = min(BATCHES, batches.steps_per_epoch)
    some = (batches.batch(i) for i in range(count))
    return distillation.importance(loss, small.params, some, config.num_attention_heads)
