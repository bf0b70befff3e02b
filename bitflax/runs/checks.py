"""Checks of a whole recipe on shapes alone, before anything is trained."""

import contextlib
import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bitflax import distillation, files, packed, quantization, training, trees
from bitflax.data import Tokenizer
from bitflax.errors import BitflaxError, ConfigError
from bitflax.model import bert, config_from_hf, resolve_folder
from bitflax.quantization import quantize
from bitflax.recipe import Recipe, Stage, function_name
from bitflax.runs import initialization, results
from bitflax.runs.experiment import Experiment, loaded_model
from bitflax.types import BertConfig, Model, Optim, Params

_LOG = logging.getLogger(__name__)

# Any values, to see what a quantizer makes of them.
_SOME = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)


def check_stages(experiment: Experiment) -> dict[str, Params]:
    """Check every stage's layers, rules, sites and loss on shapes alone.

    Returns:
      The shapes of each stage's parameters, by its name.

    Raises:
      ConfigError: a stage cannot run; names it and says why.
    """
    before, fine_tuned = None, _shapes_of(experiment.teacher)
    done, earlier = {"teacher": fine_tuned}, None
    stages, taught = experiment.recipe.stages, experiment.recipe.teacher
    if taught.folder is None:
        read = dict.fromkeys(trees.flatten(fine_tuned.params), True)
        _check_frozen(taught.optim, read, "teacher")
    for number, stage in enumerate(stages, 1):
        place = f"stages.{number - 1} ({stage.name})"
        with _errors_at(place):
            batch = experiment.data_of(stage).batches(number, stage).batch(0)
            teacher, first = done[stage.teacher], fine_tuned
            if stage.corpus is not None:
                teacher = first = _shapes_of(experiment.corpus_data.teacher)
            known = {"previous": before or first, "teacher": first}
            source = known.get(stage.init.source)
            if source is None:
                source = _load(stage.init.source, fine_tuned.config, experiment)
            stage.init.config(source.config, f"{place}.init")
            _check_split(stage, earlier)
            made = _check_stage(stage, teacher, source, batch, place)
            if before and earlier and stage.init.source == "previous":
                _check_bits(experiment, stage, made, earlier, before)
            done[stage.name] = before = made
            earlier = stage
    if stages and stages[-1].packs:
        assert before is not None
        packed.check_tokenizer(experiment.tokenizer.to_json(), before.config)
        _check_packs(stages[-1], experiment.recipe, before)
    return {name: model.params for name, model in done.items()}


@contextlib.contextmanager
def _errors_at(place: str) -> Iterator[None]:
    """Turn whatever a stage's loss or quantizers raise into an error of a place."""
    try:
        yield
    except BitflaxError:
        raise
    except KeyError as error:
        problem = f"its loss reads {error} of the batch, which the data do not have"
        fix = "give data with labels (edits have none: --set data.augment=none), or a "
        fix += "loss that needs none"
        raise ConfigError(place, problem, fix=fix) from error
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        fix = "correct the stage's loss, rules, act or init; --debug shows where"
        raise ConfigError(place, f"{kind}{error}", fix=fix) from error


def _shapes_of(whole: Model) -> Model:
    """Return a model of shapes in place of arrays."""
    return Model(whole.config, jax.eval_shape(lambda params: params, whole.params))


def _check_bits(
    experiment: Experiment, stage: Stage, made: Model, earlier: Stage, before: Model
) -> None:
    """Warn where a stage starts from a student with fewer bits than its own rules."""
    bits = results.weight_bits(stage, made.params)
    fewer = results.weight_bits(earlier, before.params)
    if stage.init.shape or not bits or not fewer or bits <= fewer:
        return
    problem = f"stage {stage.name} trains {bits}-bit weights, starting from the "
    problem += f"{fewer}-bit ones of stage {earlier.name}, whose training is undone"
    fix = "put stages of fewer bits last, or give this one another init.source"
    experiment.run.note(f"{problem} (fix: {fix})")
    if training.is_main_process():
        _LOG.warning("%s\nfix: %s", problem, fix)


def _check_split(stage: Stage, earlier: Stage | None) -> None:
    """Check that a split's quantizers can split, and that the stage before had them."""
    trained = {} if earlier is None else dict(reversed(earlier.rules))
    for regex, quantizer in stage.init.split:
        quantization.split({"kernel": jnp.asarray(_SOME)}, (("kernel", quantizer),))
        before = trained.get(regex, quantizer)
        mine, its = function_name(quantizer), function_name(before)
        if earlier and mine != its:
            problem = f"init.split: {regex} is split by {mine}, but {earlier.name} "
            raise ValueError(f"{problem}trained it by {its}")


def _load(name: str, teacher: BertConfig, experiment: Experiment) -> Model:
    """Check that a stage can start from a folder's model; return its shapes."""
    place = resolve_folder(name) / "config.json"
    found = config_from_hf(
        files.read_json(place),
        num_labels=teacher.num_labels,
        problem_type=teacher.problem_type,
        place=place,
    )
    fix = "start from a model with the teacher's vocabulary"
    if found.vocab_size != teacher.vocab_size:
        problem = (
            f"vocab_size {found.vocab_size}, the teacher's is {teacher.vocab_size}"
        )
        raise ConfigError(place, problem, fix=fix)
    own = Tokenizer.from_folder(place.parent)
    if not own.same_words(experiment.tokenizer):
        problem = "its tokenizer gives words other ids than the teacher's"
        raise ConfigError(place.parent, problem, fix=fix)
    data = experiment.recipe.data
    longest = data.max_length if data else 0
    if found.max_position_embeddings < longest:
        most = found.max_position_embeddings
        problem = f"{most} positions, but Data.max_length is {longest}"
        raise ConfigError(place, problem, fix=f"lower Data.max_length to {most}")
    return _shapes_of(loaded_model(name, teacher, jax.random.key(0)))


def _check_packs(stage: Stage, recipe: Recipe, last: Model) -> None:
    """Check that what the last stage trains can be packed."""
    most = last.config.max_position_embeddings
    if (recipe.positions or 0) > most:
        problem = f"expected at most {most}, as the student has, found "
        fix = f"give {most} or fewer, or none"
        raise ConfigError("Recipe.positions", f"{problem}{recipe.positions}", fix=fix)
    packed.check_header(last.config, stage.act, trees.flatten(last.params))
    try:
        packed.rest_of(recipe.rest, trees.flatten(last.params))
    except ValueError as error:
        fix = "correct the rule's regular expression"
        raise ConfigError("Recipe.rest", str(error), fix=fix) from error
    quantizers = [quantizer for _, quantizer in stage.rules]
    tried = jax.jit(lambda some: [quantizer(some) for quantizer in quantizers])
    found = tried(_SOME) if quantizers else []
    for (regex, _), values in zip(stage.rules, found, strict=True):
        packed.pack_leaf(f"{stage.name}: {regex}", np.asarray(values), True, "int8")


def _check_stage(
    stage: Stage, teacher: Model, source: Model, batch: dict, place: str
) -> Model:
    """Run a stage's first step on shapes alone; return its student's shapes."""
    key = jax.random.key(0)
    config, start = initialization.initial_student(stage.init, source, key)
    taught = bert(teacher.config)
    student = distillation.projected(bert(config, stage.act))

    def run(params, teacher_params):
        params = initialization.with_projection(params, config, teacher.config, key)
        params = initialization.fit_act(Model(config, params), stage, None, batch)
        said = student(quantize(params, stage.rules), batch)
        parts = stage.loss(said, taught(teacher_params, batch), batch)
        return distillation.total(distillation.named(parts)), params

    _, params = jax.eval_shape(run, start, teacher.params)
    if stage.optim.frozen:
        both = (start, teacher.params)
        read, _ = trees.leaves_read(lambda both: run(*both)[0], both)
        read = dict.fromkeys(trees.flatten(params), True) | trees.flatten(read)
        _check_frozen(stage.optim, read, place)
    return Model(config, params)


def _check_frozen(optim: Optim, read: dict[str, bool], place: str) -> None:
    """Check that of the parameters which a loss reads some are left to train."""
    problem = "freezes all parameters that the loss reads: nothing is trained"
    try:
        frozen = trees.match([(regex, False) for regex in optim.frozen], read)
        if any((read | frozen).values()):
            return
    except ValueError as error:
        problem = str(error)
    fix = "name what is not to be trained, as 'embeddings/.*', and leave some"
    raise ConfigError(f"{place}.optim.frozen", problem, fix=fix)
