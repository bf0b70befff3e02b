"""Checks of a whole recipe on shapes alone, before anything is trained."""

import dataclasses
import functools

import jax

from bitflax import depth, losses, model, pretrained, trees
from bitflax.errors import ConfigError
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
                folder = pretrained.resolve(stage.init.source)
                source, _ = pretrained.load_pretrained(folder)
                source = dataclasses.replace(
                    source,
                    num_labels=teacher.num_labels,
                    id2label=teacher.id2label,
                    problem_type=teacher.problem_type,
                )
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
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(place, str(error), fix="change the recipe") from error


def _check_stage(stage: Stage, teacher: BertConfig, config: BertConfig, batch) -> None:
    def run(student, taught):
        said = model.bert(config, stage.act)(quantize(student, stage.rules), batch)
        parts = stage.loss(said, model.bert(teacher)(taught, batch), batch)
        return losses.total(parts) if isinstance(parts, dict) else parts.value

    jax.eval_shape(run, _shapes(config), _shapes(teacher))
    frozen = [(regex, True) for regex in stage.optim.frozen]
    trees.match(frozen, trees.flatten(_shapes(config)))
