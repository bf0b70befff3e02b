"""What the stages of a run learn from: a task's examples, or a corpus."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bitflax import distillation, model, progress, training
from bitflax.data import (
    EVAL_BATCHES,
    Batches,
    CorpusBatches,
    Task,
    Tokenizer,
    Tokens,
    augmentation,
)
from bitflax.errors import ConfigError
from bitflax.packed import Rest, stored, stored_by_leaf
from bitflax.quantization import quantize
from bitflax.recipe import Data, Recipe, Stage, planned_steps
from bitflax.runs.environment import memory
from bitflax.runs.folder import RunFolder
from bitflax.types import BertConfig, Mean, Model, Outputs, Params

MOST_KEPT_BYTES = 4 << 30


@dataclasses.dataclass
class TaskData:
    """The examples of a task, as a stage learns from them.

    Attributes:
      run: the run folder, held.
      mesh: all devices.
      data: the recipe's.
      seed: the recipe's.
      task: the data, its labels numbered in the teacher's order.
      tokens: of the training examples.
      dev: batches of the dev examples.
      buckets: the lengths that batches are padded to.
      used: the ids of the words that the task uses; ``tokens`` hold places in it.
      rest: how parameters that no rule quantises are packed.
      kept_outputs: teachers' outputs, each with what it depends on.
      scorers: what has scored, each with what it was made of.
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
    scorers: list[tuple[Any, training.Evaluator]] = dataclasses.field(
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
        edits = self.data.augment == augmentation.EDITS
        each = own if edits else batches.steps_per_epoch
        return planned_steps(stage, each, own, len(self.task.labels))

    def shrink(self, whole: Model) -> Model:
        """Return a model whose embedding has only the words that the task uses.

        The tokens of batches are numbered so.
        """
        return Model(*distillation.shrink_vocabulary(*whole, self.used))

    def grow(self, params: Params, start: Params) -> Params:
        """Return trained parameters with the word embedding as long as the start's.

        The rows of words that do not occur are the start's.
        """
        return distillation.grow_vocabulary(params, start, self.used)

    def scorer(self, stage: Stage | None, student: BertConfig) -> training.Evaluator:
        """Return what scores a stage's parameters; without a stage, a plain model's.

        One that an earlier call made, with what it has compiled, is returned again.
        """
        act = stage.act if stage else None
        source = (student, act, stage.rules if stage else ())
        for known, made in self.scorers:
            if known == source:
                return made
        times = stage.evals if stage else 1
        positions = times * self.dev.padded_tokens // self.mesh.size
        made = training.Evaluator(
            model.bert(student, act),
            self.dev,
            self.task.dev.labels,
            self.task.scores,
            self.task.regression,
            self.mesh,
            stored_values(stage, self.rest, by_leaf=True),
            model.compiler_options(model.forward_flop(student, positions)),
        )
        self.scorers.append((source, made))
        return made

    def scorer_of(
        self, whole: Model, stage: Stage | None = None
    ) -> tuple[training.Evaluator, Params]:
        """Return what scores a whole model, and the parameters that it takes."""
        small = self.shrink(whole)
        return self.scorer(stage, small.config), small.params

    def teacher_outputs(
        self, stage: Stage, teacher: Model, start: Model, batches: Batches
    ) -> distillation.TeacherOutputs | None:
        """Return the teacher's outputs that a stage's loss reads, where they fit.

        Outputs that an earlier stage computed are used again. None are kept where a
        device computes them before the host can copy them; nor with many processes,
        each of which would have to compute them for all examples.
        """
        if not stage.cache_teacher or training.process_part()[1] > 1:
            return None
        batch = batches.batch(0)
        said, told = output_shapes(stage, teacher, start, batch)
        if distillation.may_read_padding(stage.loss, said, told, batch):
            return None
        used = distillation.used_outputs(stage.loss, said, told, batch)
        source = distillation.fingerprint(teacher.params, batches, stage.teacher_dtype)
        for known, kept in self.kept_outputs:
            if known == source and used <= kept.names:
                return kept
        size = distillation.outputs_size(used, told, batches)
        flop = 3 * model.forward_flop(start.config, batches.padded_tokens)
        flop += model.forward_flop(teacher.config, batches.padded_tokens)
        if not (training.keeps_outputs(flop, size) and self._fits(stage, size)):
            return None
        kept = self._compute_outputs(stage, teacher, batches, told, used)
        self.kept_outputs.append((source, kept))
        return kept

    def _fits(self, stage: Stage, size: int) -> bool:
        """Whether outputs of this size may be kept; if need be, drop earlier ones."""
        whole = memory()
        most = min(MOST_KEPT_BYTES, whole // 4)
        if stage.cache_bytes is not None:
            most = min(stage.cache_bytes, whole)
        if size > most:
            if most:  # 0 asks for it
                size_is, most_is = (f"{n / 1e9:,.3f} GB" for n in (size, most))
                problem = f"{stage.name}: the teacher's outputs take {size_is}, and "
                problem += f"{most_is} may be kept (cache_bytes): the teacher runs in "
                progress.tell(problem + "every step")
            return False
        if sum(kept.nbytes for _, kept in self.kept_outputs) + size > most:
            self.kept_outputs.clear()
        return True

    def _compute_outputs(
        self,
        stage: Stage,
        teacher: Model,
        batches: Batches,
        outputs: Outputs,
        used: frozenset[str],
    ) -> distillation.TeacherOutputs:
        """Compute a teacher's outputs of all training examples on all devices."""
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


def stored_values(
    stage: Stage | None, rest: Rest, *, by_leaf: bool = False
) -> Callable[[Params], Params] | None:
    """Return the function from latent weights to those that a packed file holds.

    It is None for an FP32 stage, which rounds nothing. A stage with a corpus is never
    packed, since another stage goes on with its student: only its rules apply.

    Args:
      stage: whose rules; None: none.
      rest: how what no rule matches is packed.
      by_leaf: for what computes with the values many times: each by a program of its
        own; else within a step's, and quantised as they are used.
    """
    if stage is None or not (stage.rules or stage.packs):
        return None
    if stage.corpus is not None:
        return functools.partial(quantize, rules=stage.rules, lazy=True)
    if by_leaf:
        return functools.partial(stored_by_leaf, rules=stage.rules, rest=rest)
    return functools.partial(stored, rules=stage.rules, rest=rest, lazy=True)


def output_shapes(
    stage: Stage, teacher: Model, student: Model, batch: Any
) -> tuple[Outputs, Outputs]:
    """Return the shapes of the student's and the teacher's outputs of a batch."""
    apply = distillation.projected(model.bert(student.config, stage.act))
    said = jax.eval_shape(apply, student.params, batch)
    told = jax.eval_shape(model.bert(teacher.config), teacher.params, batch)
    return said, told


@dataclasses.dataclass
class CorpusData:
    """The pieces of a stage's corpus, with the methods of ``TaskData``.

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

    def shrink(self, whole: Model) -> Model:
        """Return the model itself: a corpus may use every word."""
        return whole

    def grow(self, params: Params, start: Params) -> Params:
        """Return the parameters themselves."""
        return params

    def teacher_outputs(
        self, stage: Stage, teacher: Model, start: Model, batches: Any
    ) -> None:
        """Return None: no piece comes often enough to keep its teacher's outputs."""

    def scorer(self, stage: Stage, student: BertConfig) -> training.LossEvaluator:
        """Return ``params -> {part of the loss: mean}`` on what is held out."""
        apply = distillation.projected(model.bert(student, stage.act))
        teach = model.bert(self.teacher.config)
        teacher = training.replicate(self.teacher.params, self.mesh)
        # Number 0: which pieces are held out does not depend on the stage's order.
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


StageData = TaskData | CorpusData
"""What a stage learns from and is scored on."""


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
        """The students' data, for stages that need some: ``Recipe`` checks that."""
        assert self.student_data is not None
        return self.student_data

    def key(self, number: int) -> jax.Array:
        """Return the key of a stage, by its number; 0: of the teacher."""
        # As one program: jax would compile a number's conversion too.
        return jax.jit(jax.random.fold_in)(jax.random.key(self.recipe.seed), number)

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
                    fix="give the model that the folder was fine-tuned from",
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
