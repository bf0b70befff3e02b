"""Checks of a whole recipe on shapes alone, before anything is trained."""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from bitflax import distillation, files, packed, quantization, training, trees
from bitflax.data import Tokenizer
from bitflax.errors import BitflaxError, ConfigError
from bitflax.model import bert, config_from_hf, resolve_folder
from bitflax.quantization import quantize
from bitflax.recipe import Stage, function_name
from bitflax.runs import initialization, results
from bitflax.runs.experiment import Experiment, loaded_model
from bitflax.types import BertConfig, Model, Optim, Params

_LOG = logging.getLogger(__name__)

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
        try:
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
        except KeyError as error:
            problem = f"its loss reads {error} of the batch, which the data do not have"
            fix = "give data with labels (data.augment=edits has none), or a loss that "
            fix += "needs none"
            raise ConfigError(place, problem, fix=fix) from error
        except BitflaxError:
            raise
        except Exception as error:  # anything may come out of a loss of one's own
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, ValueError):
                problem = str(error)
            fix = "correct the stage's loss, rules, act or init; --debug shows where"
            raise ConfigError(place, problem, fix=fix) from error
    if stages and stages[-1].packs:
        assert before is not None
        packed.check_tokenizer(experiment.tokenizer.to_json(), before.config)
        _check_packs(stages[-1], experiment.recipe.rest, before)
    return {name: model.params for name, model in done.items()}


def _shapes_of(whole: Model) -> Model:
    """Return a model of shapes in place of arrays."""
    return Model(whole.config, jax.eval_shape(lambda params: params, whole.params))


def _check_bits(
    experiment: Experiment, stage: Stage, made: Model, earlier: Stage, before: Model
) -> None:
    """Warn where a stage goes on with a student of fewer bits than it has itself."""
    bits = results.weight_bits(stage, made.params)
    fewer = results.weight_bits(earlier, before.params)
    if stage.init.shape or not bits or not fewer or bits <= fewer:
        return
    problem = f"stage {stage.name}: {bits}-bit weights that go on from the {fewer}-bit "
    problem += f"ones of stage {earlier.name}: training for fewer bits is undone"
    fix = "put stages of fewer bits last, or give this one an init.source"
    experiment.run.note(f"{problem} (fix: {fix})")
    if training.is_main_process():
        _LOG.warning("%s\nfix: %s", problem, fix)


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


def _load(name: str, teacher: BertConfig, experiment: Experiment) -> Model:
    """Return the shapes of a folder's model that a stage starts from."""
    place = resolve_folder(name) / "config.json"
    found = config_from_hf(
        files.read_json(place),
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
    own = Tokenizer.from_folder(place.parent)
    if not own.same_words(experiment.tokenizer):
        raise ConfigError(
            place.parent,
            "its tokenizer numbers other words than the teacher's",
            fix="start from a model with the teacher's vocabulary",
        )
    data = experiment.recipe.data
    longest = data.max_length if data else 0
    if found.max_position_embeddings < longest:
        raise ConfigError(
            place,
            f"{found.max_position_embeddings} positions, but Data.max_length is "
            f"{longest}",
            fix="shorten Data.max_length",
        )
    return _shapes_of(loaded_model(name, teacher, jax.random.key(0)))


def _check_packs(stage: Stage, rest: packed.Rest, last: Model) -> None:
    """Check that what the last stage trains can be packed."""
    packed.check_header(last.config, stage.act, trees.flatten(last.params))
    try:
        packed.rest_of(rest, trees.flatten(last.params))
    except ValueError as error:
        fix = "correct the rule's regular expression"
        raise ConfigError("Recipe.rest", str(error), fix=fix) from error
    for regex, quantizer in stage.rules:
        values = np.asarray(jax.jit(quantizer)(_SOME))
        packed.pack_leaf(f"{stage.name}: {regex}", values, True, "int8")


def _check_stage(
    stage: Stage, teacher: Model, source: Model, batch: dict, place: str
) -> Model:
    """Run a stage's first step on shapes; return the shapes that it leaves."""
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
