"""Checks of a whole recipe on shapes alone, before anything is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bitflax import distillation, packed, quantization, trees
from bitflax.errors import BitflaxError, ConfigError
from bitflax.model import (
    Split,
    bert,
    config_from_hf,
    init_params,
    read_json,
    resolve_folder,
)
from bitflax.quantization import quantize
from bitflax.recipe import Init, Stage, function_name
from bitflax.runs import experiment, initialization
from bitflax.runs.experiment import Experiment
from bitflax.types import BertConfig, Model, Params

_SOME = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)


def _shapes(config: BertConfig) -> Params:
    init = functools.partial(init_params, config)
    return jax.eval_shape(init, jax.random.key(0))


def check_stages(setting: Experiment) -> dict[str, Params]:
    """Check every stage's layers, rules, sites and loss on shapes alone.

    Returns:
      The shapes of each stage's parameters, by its name.

    Raises:
      ConfigError: a stage cannot run; names it and says why.
    """
    before, teacher = None, _like(setting.teacher)
    done, earlier = {"teacher": teacher}, None
    for number, stage in enumerate(setting.recipe.stages, 1):
        place = f"stages.{number - 1} ({stage.name})"
        try:
            lesson = setting.lesson_of(stage)
            batch = lesson.batches(number, stage).batch(0)
            teaches, main = done[stage.teacher], teacher
            if stage.corpus is not None:
                teaches = main = _like(setting.general.teacher)
            known = {"previous": before or main, "teacher": main}
            source = known.get(stage.init.source)
            source = source or _source(stage.init.source, teacher.config, setting)
            _check_split(stage, earlier)
            before = _check_stage(stage, teaches, _start(stage.init, source), batch)
            done[stage.name], earlier = before, stage
        except KeyError as error:
            problem = f"its loss reads {error} of the batch, which the data do not have"
            fix = "give data with labels, or a loss that needs none"
            raise ConfigError(place, problem, fix=fix) from error
        except BitflaxError:
            raise
        except Exception as error:  # anything may come out of a loss of one's own
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, ValueError):
                problem = str(error)
            raise ConfigError(place, problem, fix="change the recipe") from error
    stages = setting.recipe.stages
    if stages and stages[-1].packs:
        assert before is not None
        packed.check_tokenizer(setting.tokenizer.to_json(), before.config)
        _check_packs(stages[-1], setting.recipe.rest, before)
    return {name: model.params for name, model in done.items()}


def _like(whole: Model) -> Model:
    """Return a model's shapes in place of its arrays."""
    return Model(whole.config, jax.eval_shape(lambda params: params, whole.params))


def _check_split(stage: Stage, earlier: Stage | None) -> None:
    """Try the rules of a split; they must be those that the stage before trained by."""
    split = stage.init.split
    for regex, quantizer in split:
        some = {"kernel": jnp.asarray(_SOME)}
        quantization.split(some, (("kernel", quantizer),))
        before = () if earlier is None else earlier.rules
        same = [q for known, q in before if known == regex] or [quantizer]
        if function_name(same[0]) != function_name(quantizer):
            raise ValueError(
                f"init.split: {regex} is split by {function_name(quantizer)}, but "
                f"{earlier and earlier.name} trained it by {function_name(same[0])}"
            )


def _start(init: Init, source: Model) -> Model:
    """Return the shapes of what ``init`` makes of a model."""
    config, params = init.config(source.config), source.params
    if init.shape is not None:
        params = _shapes(config)
    elif init.layers is not None:
        params = distillation.take_layers(params, init.layers)
    if init.width is not None:
        flat = trees.flatten(params)
        if any(isinstance(leaf, Split) for leaf in flat.values()):
            raise ValueError("init.width: cut the width before matrices are split")
        params = _shapes(config)
    if init.split:
        flat = trees.flatten(params)
        for path in trees.match(init.split, flat):
            if isinstance(flat[path], Split):
                raise ValueError(f"init.split: {path} is split already")
            flat[path] = Split(flat[path], flat[path])
        params = trees.unflatten(flat)
    return Model(config, params)


def _source(name: str, teacher: BertConfig, setting: Experiment) -> Model:
    """Return the shapes of a model that a stage starts from."""
    place = resolve_folder(name) / "config.json"
    found = config_from_hf(
        read_json(place),
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
    longest = setting.recipe.data.max_length if setting.recipe.data else 0
    if found.max_position_embeddings < longest:
        raise ConfigError(
            place,
            f"{found.max_position_embeddings} positions, but Data.max_length is "
            f"{longest}",
            fix="shorten Data.max_length",
        )
    return _like(experiment.loaded_model(name, teacher, jax.random.key(0)))


def _check_packs(stage: Stage, rest: packed.Rest, last: Model) -> None:
    """Check that what the last stage trains can be packed."""
    packed.config_to_json(last.config)
    packed.act_to_json(stage.act, last.config)
    try:
        packed.rest_of(rest, trees.flatten(last.params))
    except ValueError as error:
        fix = "correct the rule's regular expression"
        raise ConfigError("Recipe.rest", str(error), fix=fix) from error
    for regex, quantizer in stage.rules:
        values = np.asarray(jax.jit(quantizer)(_SOME))
        packed.pack_leaf(f"{stage.name}: {regex}", values, True, "int8")


def _check_stage(stage: Stage, teacher: Model, start: Model, batch: dict) -> Model:
    """Run a stage's first step on shapes; return the shapes that it leaves."""
    config = start.config
    taught = bert(teacher.config)
    student = distillation.projected(bert(config, stage.act))

    def run(params, teacher_params):
        params = initialization.with_projection(
            params, config, teacher.config, jax.random.key(0)
        )
        params = initialization.fit_act(Model(config, params), stage, None, batch)
        said = student(quantize(params, stage.rules), batch)
        parts = stage.loss(said, taught(teacher_params, batch), batch)
        loss = distillation.total(parts) if isinstance(parts, dict) else parts.value
        return loss, params

    _, params = jax.eval_shape(run, start.params, teacher.params)
    trees.match([(regex, True) for regex in stage.optim.frozen], trees.flatten(params))
    return Model(config, params)
