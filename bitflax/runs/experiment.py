"""What a task's stages learn from: its examples, its words, its teacher's outputs."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bitflax.data.batches import Batches
from bitflax.data.examples import Task
from bitflax.data.text import Tokens
from bitflax.distillation import outputfiles, projection, teacher_outputs, vocabulary
from bitflax.model import apply
from bitflax.quantization.rules import quantize
from bitflax.recipe.recipe import Stage
from bitflax.recipe.schema import Data
from bitflax.runs.folder import RunFolder
from bitflax.training import evaluation, hosts, parallel
from bitflax.types import BertConfig, Outputs, Params

MOST_KEPT_BYTES = 4 << 30


class Model(NamedTuple):
    """A configuration and its parameters."""

    config: BertConfig
    params: Params


@dataclasses.dataclass
class Lesson:
    """A task as its stages see it.

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
    _kept: list[tuple[Any, teacher_outputs.Kept]] = dataclasses.field(
        default_factory=list
    )

    @property
    def metric(self) -> str:
        """The name of the main metric."""
        return self.task.metric

    def batches(self, number: int, stage: Stage | None = None) -> Batches:
        """Return the training batches of a stage; each number has its own order."""
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
        return stage.steps or stage.epochs * batches.steps_per_epoch

    def small(self, whole: Model) -> Model:
        """Return a model with the words that the task uses, as tokens number them."""
        return Model(*vocabulary.shrink(*whole, self.used))

    def whole(self, params: Params, start: Params) -> Params:
        """Return trained parameters with the start's rows of all other words."""
        return vocabulary.grow(params, start, self.used)

    def scorer(self, stage: Stage | None, student: BertConfig) -> evaluation.Evaluator:
        """Return what scores a stage's parameters; without a stage, a plain model's."""
        rules = stage.rules if stage else ()
        labels = self.task.dev.labels
        assert labels is not None  # where data have none, prepare takes the teacher's
        return evaluation.Evaluator(
            apply.bert(student, stage.act if stage else None),
            self.dev,
            labels,
            self.metric,
            self.task.regression,
            self.mesh,
            functools.partial(quantize, rules=rules) if rules else None,
        )

    def kept(
        self, stage: Stage, teacher: Model, start: Model, batches: Batches
    ) -> teacher_outputs.Kept | None:
        """Return the teacher's outputs that a stage's loss reads, where they fit.

        A stage that reads what a stage before it read takes over what that kept. With
        many processes none are kept: each would compute them for all examples alone.
        """
        if not stage.cache_teacher or hosts.part()[1] > 1:
            return None
        outputs, used = _used(stage, teacher, start, batches)
        if used is None:
            return None
        source = (stage.teacher, stage.teacher_dtype)
        for known, kept in self._kept:
            if known == source and used <= kept.names:
                return kept
        size = teacher_outputs.size(teacher_outputs.row_shapes(used, outputs), batches)
        files = None
        if stage.cache_teacher == "disk":
            files = self._files(stage, teacher, used)
        if not self._fits(size, stage.cache_bytes, files):
            return None
        kept = self._filled(stage, teacher, batches, outputs, used, files)
        self._kept.append((source, kept))
        return kept

    def _files(
        self, stage: Stage, teacher: Model, used: frozenset[str]
    ) -> outputfiles.Files:
        """Return the folder named after all that decides what a teacher says."""
        tokens = dataclasses.asdict(self.tokens)
        said = dict(config=repr(teacher.config), dtype=stage.teacher_dtype)
        named = dict(names=sorted(used), buckets=self.buckets)
        digest = outputfiles.digest(teacher.params, tokens, **said, **named)
        return outputfiles.Files(self.run.cache / "teacher" / digest[:32])

    def _fits(
        self, size: int, most: int | None, files: outputfiles.Files | None
    ) -> bool:
        """Whether outputs may be kept; in memory, others make room for them."""
        if files is not None:
            free = shutil.disk_usage(self.run.cache).free
            return files.whole or size <= (free // 2 if most is None else most)
        most = min(MOST_KEPT_BYTES, _memory() // 4) if most is None else most
        if size > most:
            return False
        if sum(kept.in_memory for _, kept in self._kept) + size > most:
            self._kept.clear()
        return True

    def _filled(
        self,
        stage: Stage,
        teacher: Model,
        batches: Batches,
        outputs: Outputs,
        used: frozenset[str],
        files: outputfiles.Files | None,
    ) -> teacher_outputs.Kept:
        """Return a teacher's outputs: from disk, or computed on all devices."""
        array = files and files.array
        if files and files.whole:
            return teacher_outputs.Kept(used, outputs, batches, array)
        filling = teacher_outputs.keep(
            apply.bert(teacher.config, dtype=stage.teacher_dtype),
            parallel.replicate(teacher.params, self.mesh),
            batches,
            outputs,
            used,
            array=array,
            share=functools.partial(parallel.shard_batch, mesh=self.mesh),
        )
        with self.run.progress(batches.steps_per_epoch, "teacher's outputs") as bar:
            for number, filled in enumerate(filling, 1):
                bar.update(number)
                kept = filled
        if files:
            files.finish()
        return kept


def _memory() -> int:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container has less than its machine
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def _used(stage: Stage, teacher: Model, start: Model, batches: Any):
    """Return the shapes of the teacher's outputs and the names of those in use.

    The names are None where padding may be in use too.
    """
    batch = {k: v for k, v in batches.batch(0).items() if k != "index"}
    student = projection.projected(apply.bert(start.config, stage.act))
    told = jax.eval_shape(apply.bert(teacher.config), teacher.params, batch)
    said = jax.eval_shape(student, start.params, batch)
    if teacher_outputs.may_read_padding(stage.loss, said, told, batch):
        return told, None
    return told, teacher_outputs.used_outputs(stage.loss, said, told, batch)
