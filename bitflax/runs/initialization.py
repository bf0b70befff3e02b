"""The model that a stage begins with: layers, another shape, halves, learned clips."""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax

from bitflax import trees
from bitflax.distillation import projection, student, width
from bitflax.model import apply, pretrained, sites
from bitflax.quantization import rules, splitting
from bitflax.recipe.recipe import Init, Stage
from bitflax.runs.experiment import Model
from bitflax.types import Batch, BertConfig, Params


def start(
    init: Init,
    teacher: Model,
    before: Model,
    key: jax.Array,
    judge: Callable[[Model], width.Importance],
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
        chosen = loaded(init.source, teacher.config, key)
    config, params = init.config(chosen.config), chosen.params
    if init.shape is not None:
        params = apply.init_params(config, key)
    elif init.layers is not None:
        params = student.take_layers(params, init.layers)
    if init.width is not None:
        depth_alone = dataclasses.replace(init, width=None).config(chosen.config)
        judged = judge(Model(depth_alone, params))
        params = width.take_width(params, *init.width, judged)
    if init.split:
        params = splitting.split(params, init.split)
    return Model(config, params)


def loaded(folder: str, teacher: BertConfig, key: jax.Array) -> Model:
    """Return a folder's model with a head like the teacher's."""
    labels = teacher.id2label
    config, params = pretrained.load_pretrained(
        folder,
        num_labels=teacher.num_labels,
        id2label=None if labels is None else dict(labels),
        problem_type=teacher.problem_type,
        seed=int(jax.random.bits(key)),
    )
    return Model(config, params)


def projected(
    params: Params, config: BertConfig, teacher: BertConfig, key: jax.Array
) -> Params:
    """Return the parameters with a projection just where who teaches is wider.

    One that fits goes on being learned.
    """
    narrow, wide = config.hidden_size, teacher.hidden_size
    held = params.get(projection.NAME)
    if narrow == wide:
        return {name: p for name, p in params.items() if name != projection.NAME}
    if held is not None and held["bias"].shape == (wide,):
        return params
    return projection.add_projection(params, key, narrow, wide)


def fit_act(small: Model, stage: Stage, before: sites.Act, batch: Batch) -> Params:
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
    held = {path for path in flat if re.fullmatch(rules.ACT_PARAMS, path)}
    at = sites.at_sites(stage.act, config)
    wanted = {site for site, fn in at.items() if sites.learns(fn)}
    if stage.act == before and wanted == held:
        return small.params
    if wanted:
        quantize = functools.partial(rules.quantize, rules=stage.rules)
        return apply.init_act(small.params, stage.act, batch, config, quantize)
    return trees.unflatten({p: leaf for p, leaf in flat.items() if p not in held})
