"""Checks of a whole recipe on shapes alone, before anything is trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bitflax import (
    depth,
    encoding,
    hfconfig,
    losses,
    model,
    packedmeta,
    pretrained,
    trees,
)
from bitflax.errors import BitflaxError, ConfigError
from bitflax.recipe import Stage
from bitflax.rules import quantize
from bitflax.setting import Setting
from bitflax.types import BertConfig, Params


def _shapes(config: BertConfig) -> Params:
    init = functools.partial(model.init_params, config)
    return jax.eval_shape(init, jax.random.key(0))


def check_stages(setting: Setting) -> None:
    """Check every stage's layers, rules, sites and loss on shapes alone.

    Raises:
      ConfigError: a stage cannot run; names it and says why.
    """
    teacher = config = setting.teacher.config
    batch = {k: v for k, v in setting.batches(1, None).batch(0).items() if k != "index"}
    for number, stage in enumerate(setting.recipe.stages):
        place = f"stages.{number} ({stage.name})"
        source = teacher if stage.init.source == "teacher" else config
        try:
            if stage.init.source not in ("previous", "teacher"):
                source = _source(stage.init.source, teacher, setting)
            layers = stage.init.layers
            if layers is not None:
                depth.take_layers(_shapes(source), layers)
                source = dataclasses.replace(source, num_hidden_layers=len(layers))
            config = source
            _check_stage(stage, teacher, config, batch)
        except KeyError as error:
            problem = f"its loss reads {error} of the batch, which the data do not have"
            fix = "give data with labels, or a loss that needs none"
            raise ConfigError(place, problem, fix=fix) from error
        except BitflaxError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(place, str(error), fix="change the recipe") from error
    if setting.recipe.stages:
        _check_packs(setting.recipe.stages[-1], setting.recipe.rest)


def _source(name: str, teacher: BertConfig, setting: Setting) -> BertConfig:
    """Return the configuration of a model that a stage starts from."""
    place = pretrained.resolve(name) / "config.json"
    found = hfconfig.config_from_hf(
        hfconfig.read_json(place),
        num_labels=teacher.num_labels,
        problem_type=teacher.problem_type,
        place=place,
    )
    if found.vocab_size != teacher.vocab_size:
        raise ConfigError(
            place,
            f"vocab_size {found.vocab_size}, the teacher's is {teacher.vocab_size}",
            fix="start from a model with the teacher's vocabulary",
        )
    if found.max_position_embeddings < setting.recipe.data.max_length:
        raise ConfigError(
            place,
            f"{found.max_position_embeddings} positions, but Data.max_length is "
            f"{setting.recipe.data.max_length}",
            fix="shorten Data.max_length",
        )
    return found


def _check_packs(stage: Stage, rest: str) -> None:
    """Check that what the last stage trains can be packed."""
    packedmeta.act_to_json(stage.act)
    some = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    for regex, quantizer in stage.rules:
        values = np.asarray(quantizer(jnp.asarray(some)))
        encoding.pack_leaf(f"{stage.name}: {regex}", values, True, rest)


def _check_stage(stage: Stage, teacher: BertConfig, config: BertConfig, batch) -> None:
    def run(student, taught):
        said = model.bert(config, stage.act)(quantize(student, stage.rules), batch)
        parts = stage.loss(said, model.bert(teacher)(taught, batch), batch)
        return losses.total(parts) if isinstance(parts, dict) else parts.value

    jax.eval_shape(run, _shapes(config), _shapes(teacher))
    frozen = [(regex, True) for regex in stage.optim.frozen]
    trees.match(frozen, trees.flatten(_shapes(config)))
