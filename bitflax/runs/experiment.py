"""What the stages of a run learn from: a task's examples, or a corpus."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from bitflax import distillation, model, training
from bitflax.data import EVAL_BATCHES, Batches, CorpusBatches, Task, Tokenizer, Tokens
from bitflax.errors import ConfigError
from bitflax.packed import Rest, stored
from bitflax.quantization import quantize
from bitflax.recipe import Data, Recipe, Stage, planned_steps
from bitflax.runs.folder import RunFolder
from bitflax.runs.surroundings import memory
from bitflax.types import BertConfig, Mean, Model, Outputs, Params

MOST_KEPT_BYTES = 4 << 30


@runtime_checkable
class StageData(Protocol):
    """What a stage learns from, and how it is scored."""

    @property
    def metric(self) -> str:
        """The name of the main score."""
        ...

    def batches(self, number: int, stage: Stage) -> Any:
        """Return the training batches of a stage; each number has its own order."""
        ...

    def steps(self, stage: Stage, batches: Any) -> int:
        """Return the number of a stage's steps."""
        ...

    def small(self, whole: Model) -> Model:
        """Return a model with the words that occur, as batches number them."""
        ...

    def whole(self, params: Params, start: Params) -> Params:
        """Return trained parameters with the start's rows of all other words."""
        ...

    def kept(
        self, stage: Stage, teacher: Model, start: Model, batches: Any
    ) -> distillation.TeacherOutputs | None:
        """Return the teacher's outputs that a stage's loss reads, where they fit."""
        ...

    def scorer(
        self, stage: Stage, student: BertConfig
    ) -> training.Evaluator | training.LossEvaluator:
        """Return what scores a stage's parameters: ``params -> {name: value}``."""
        ...


@dataclasses.dataclass
class TaskData:
    """The examples of a task: a ``StageData``.

    Attributes:
      run: the run folder, held.
      mesh: all devices.
      data: the recipe's.
      seed: the recipe's.
      task: the data, its labels numbered in the teacher's order.
      tokens: of the training examples.
      dev: batches of the dev examples.
      buckets: the lengths that batches are padded to.
      used: the ids of the words that the task uses; tokens number them from 0.
      rest: how a student's parameters are packed that no rule quantises.
      kept_outputs: what teachers said of the examples, by teacher and examples.
    """

    run: RunFolder
    mesh: jax.sharding.Mesh
    data: Data
    seed: int
    task: Task
    tokens: Tokens
    dev: Batches
    buckets: tuple[int, ...]
    used: np.ndarray
    rest: Rest = "int8"
    kept_outputs: list[tuple[Any, distillation.TeacherOutputs]] = dataclasses.field(
        default_factory=list
    )

    @property
    def metric(self) -> str:
        """The name of the main metric."""
        return self.task.metric

    def batches(self, number: int, stage: Stage | None = None) -> Batches:
        """Return the training batches of a stage; without one, the data's own."""
        return Batches(
            self.tokens,
            self.task.train.labels,
            batch_size=(stage and stage.batch_size) or self.data.batch_size,
            seed=self.seed + 1000 * number,
            buckets=self.buckets,
            multiple_of=self.mesh.size * (stage.accumulate if stage else 1),
            pad_id=self.dev.pad_id,
        )

    def steps(self, stage: Stage, batches: Any) -> int:
        """Return the number of a stage's steps."""
        own = -(-len(np.unique(self.task.train.rows)) // batches.batch_size)
        each = batches.steps_per_epoch
        return planned_steps(stage.steps, stage.epochs, each, stage.rules, own)

    def small(self, whole: Model) -> Model:
        """Return a model with the words that the task uses, as tokens number them."""
        return Model(*distillation.shrink_vocabulary(*whole, self.used))

    def whole(self, params: Params, start: Params) -> Params:
        """Return trained parameters with the start's rows of all other words."""
        return distillation.grow_vocabulary(params, start, self.used)

    def scorer(self, stage: Stage | None, student: BertConfig) -> training.Evaluator:
        """Return what scores a stage's parameters; without a stage, a plain model's."""
        times = stage.evals if stage else 1
        positions = times * self.dev.padded_tokens // self.mesh.size
        return training.Evaluator(
            model.bert(student, stage.act if stage else None),
            self.dev,
            self.task.dev.labels,
            self.task.scores,
            self.task.regression,
            self.mesh,
            stored_values(stage, self.rest),
            model.compiler_options(model.forward_flop(student, positions)),
        )

    def kept(
        self, stage: Stage, teacher: Model, start: Model, batches: Batches
    ) -> distillation.TeacherOutputs | None:
        """Return the teacher's outputs that a stage's loss reads, where they fit.

        None where devices run the teacher quicker than a host hands them its outputs.
        A stage that reads what a stage before it read takes over what that kept. With
        many processes none are kept: each would compute them for all examples alone.
        """
        if not stage.cache_teacher or training.process_part()[1] > 1:
            return None
        outputs, used = _used(stage, teacher, start, batches)
        if used is None:
            return None
        source = _source(stage, teacher, batches)
        for known, kept in self.kept_outputs:
            if known == source and used <= kept.names:
                return kept
        size = distillation.outputs_size(used, outputs, batches)
        flop = 3 * model.forward_flop(start.config, batches.padded_tokens)
        flop += model.forward_flop(teacher.config, batches.padded_tokens)
        if not training.keeps_outputs(flop, size):
            return None
        if not self._fits(size, stage.cache_bytes):
            return None
        kept = self._filled(stage, teacher, batches, outputs, used)
        self.kept_outputs.append((source, kept))
        return kept

    def _fits(self, size: int, most: int | None) -> bool:
        """Whether outputs may be kept; others make room for them."""
        most = min(MOST_KEPT_BYTES, memory() // 4) if most is None else most
        if size > most:
            return False
        if sum(kept.nbytes for _, kept in self.kept_outputs) + size > most:
            self.kept_outputs.clear()
        return True

    def _filled(
        self,
        stage: Stage,
        teacher: Model,
        batches: Batches,
        outputs: Outputs,
        used: frozenset[str],
    ) -> distillation.TeacherOutputs:
        """Return a teacher's outputs, computed on all devices."""
        positions = batches.padded_tokens // self.mesh.size
        flop = model.forward_flop(teacher.config, positions)
        filling = distillation.fill(
            model.bert(teacher.config, dtype=stage.teacher_dtype),
            training.replicate(teacher.params, self.mesh),
            batches,
            outputs,
            used,
            share=functools.partial(training.shard_batch, mesh=self.mesh),
            compiler_options=model.compiler_options(flop),
        )
        with self.run.progress(batches.steps_per_epoch, "teacher's outputs") as bar:
            for number, filled in enumerate(filling, 1):
                bar.update(number)
                kept = filled
        return kept


def _source(stage: Stage, teacher: Model, batches: Batches) -> tuple[Any, ...]:
    """Return what a teacher's outputs depend on, for this run and others."""
    tokens, sha256 = batches.tokens, hashlib.sha256()
    texts = (tokens.ids, tokens.types, tokens.offsets)
    for leaf in [*jax.tree.leaves(teacher.params), *texts]:
        sha256.update(np.asarray(leaf).tobytes())
    shape = (batches.rows, batches.buckets, stage.teacher_dtype)
    return (sha256.hexdigest(), *shape)


def stored_values(
    stage: Stage | None, rest: Rest, *, lazy: bool = False
) -> Callable[[Params], Params] | None:
    """Return what maps a stage's latent weights to those that a packed file holds.

    None where there is nothing to round: an FP32 stage, or a corpus, whose student
    another stage goes on with.
    """
    if stage is None or not (stage.rules or stage.packs):
        return None
    if stage.corpus is not None:
        return functools.partial(quantize, rules=stage.rules, lazy=lazy)
    return functools.partial(stored, rules=stage.rules, rest=rest, lazy=lazy)


def _used(stage: Stage, teacher: Model, start: Model, batches: Any):
    """Return the shapes of the teacher's outputs and the names of those in use.

    The names are None where padding may be in use too.
    """
    batch = batches.batch(0)
    student = distillation.projected(model.bert(start.config, stage.act))
    told = jax.eval_shape(model.bert(teacher.config), teacher.params, batch)
    said = jax.eval_shape(student, start.params, batch)
    if distillation.may_read_padding(stage.loss, said, told, batch):
        return told, None
    return told, distillation.used_outputs(stage.loss, said, told, batch)


@dataclasses.dataclass
class CorpusData:
    """The pieces of a stage's corpus: a ``StageData``.

    The score is the loss on pieces of the corpus that training does not see: the lower
    the better.

    Attributes:
      run: the run folder, held.
      mesh: all devices.
      seed: the recipe's.
      tokenizer: the teacher's.
      teacher: the pretrained model, before any fine-tuning.
    """

    run: RunFolder
    mesh: jax.sharding.Mesh
    seed: int
    tokenizer: Tokenizer
    teacher: Model
    metric: str = "loss"
    _made: dict[int, CorpusBatches] = dataclasses.field(default_factory=dict)

    def batches(self, number: int, stage: Stage) -> CorpusBatches:
        """Return the pieces of a stage's corpus, in batches; made once a number."""
        if number not in self._made:
            self._made[number] = self._batches(number, stage)
        return self._made[number]

    def _batches(self, number: int, stage: Stage) -> CorpusBatches:
        corpus = stage.corpus
        assert corpus is not None
        return CorpusBatches(
            corpus.source,
            self.tokenizer,
            length=corpus.length,
            batch_size=stage.batch_size or corpus.batch_size,
            seed=self.seed + 1000 * number + corpus.seed,
            cache=self.run.cache,
            multiple_of=self.mesh.size * stage.accumulate,
            data_dir=corpus.data_dir,
        )

    def steps(self, stage: Stage, batches: Any) -> int:
        """Return the number of a stage's steps."""
        assert stage.steps is not None
        return stage.steps

    def small(self, whole: Model) -> Model:
        """Return the model itself: a corpus may use every word."""
        return whole

    def whole(self, params: Params, start: Params) -> Params:
        """Return the parameters themselves."""
        return params

    def kept(self, stage: Stage, teacher: Model, start: Model, batches: Any) -> None:
        """Return None: no piece comes often enough to keep its teacher's outputs."""

    def scorer(self, stage: Stage, student: BertConfig) -> training.LossEvaluator:
        """Return ``params -> {part of the loss: mean}`` on what is held out."""
        apply = distillation.projected(model.bert(student, stage.act))
        teach = model.bert(self.teacher.config)
        teacher = training.replicate(self.teacher.params, self.mesh)
        # What is held out does not depend on the order.
        batches = self._batches(0, stage)

        most = stage.evals * EVAL_BATCHES * batches.rows * batches.length
        positions = most // self.mesh.size
        flop = model.forward_flop(student, positions)
        flop += model.forward_flop(self.teacher.config, positions)
        options = model.compiler_options(flop)

        def measure(params: Params, teacher: Params, batch: Any) -> dict[str, Mean]:
            values = quantize(params, stage.rules) if stage.rules else params
            parts = stage.loss(apply(values, batch), teach(teacher, batch), batch)
            return distillation.named(parts)

        return training.LossEvaluator(measure, teacher, batches, self.mesh, options)


@dataclasses.dataclass
class Experiment:
    """What all stages of a run share.

    Attributes:
      recipe: the recipe.
      run: the run folder, held.
      mesh: all devices.
      tokenizer: the teacher's.
      teacher: the teacher, or what it will be fine-tuned from.
      student_data: the task, as students learn it; None where the recipe has none.
      teacher_data: the task as its teacher is fine-tuned on it: not augmented.
    """

    recipe: Recipe
    run: RunFolder
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    teacher: Model
    student_data: TaskData | None = None
    teacher_data: TaskData | None = None

    @property
    def task_data(self) -> TaskData:
        """The students' data, for a stage of which ``Recipe`` checked that it has."""
        assert self.student_data is not None
        return self.student_data

    def data_of(self, stage: Stage) -> StageData:
        """Return what a stage learns from."""
        return self.task_data if stage.corpus is None else self.corpus_data

    @functools.cached_property
    def corpus_data(self) -> CorpusData:
        """What stages with a corpus learn from, and the pretrained model that teaches.

        Its head is the teacher's, so that a student of it fits the task.
        """
        teacher, taught = self.teacher, self.recipe.teacher
        if taught.folder is not None and taught.pretrained is not None:
            key = jax.random.key(self.recipe.seed)
            teacher = loaded_model(taught.pretrained, teacher.config, key)
            folder = model.resolve_folder(taught.pretrained)
            own = Tokenizer.from_folder(folder)
            if own.to_json() != self.tokenizer.to_json():
                raise ConfigError(
                    folder,
                    f"its tokenizer is not that of {taught.folder}",
                    fix="give Teacher.pretrained that the folder was fine-tuned from",
                )
        return CorpusData(
            self.run, self.mesh, self.recipe.seed, self.tokenizer, teacher
        )


def loaded_model(folder: str, teacher: BertConfig, key: jax.Array) -> Model:
    """Return a folder's model with a head like the teacher's."""
    labels = teacher.id2label
    config, params = model.load_pretrained(
        folder,
        num_labels=teacher.num_labels,
        id2label=None if labels is None else dict(labels),
        problem_type=teacher.problem_type,
        seed=int(jax.random.bits(key)),
    )
    return Model(config, params)
