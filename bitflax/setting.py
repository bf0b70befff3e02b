"""What all stages of a run share, and what each of them takes from it."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bitflax import depth, model, pretrained, teaching, vocabulary
from bitflax.data import batches as batching
from bitflax.data.examples import Task
from bitflax.data.text import Tokenizer, Tokens
from bitflax.recipe import Recipe, Stage
from bitflax.runfolder import RunFolder
from bitflax.types import BertConfig, Params

MOST_KEPT_BYTES = 4 << 30


class Model(NamedTuple):
    """A configuration and its parameters."""

    config: BertConfig
    params: Params


@dataclasses.dataclass
class Setting:
    """What all stages of a run share.

    Attributes:
      recipe: the recipe.
      run: the run folder, held.
      task: the data, its labels numbered in the teacher's order.
      tokenizer: the teacher's.
      tokens: of the training examples.
      dev: batches of the dev examples.
      buckets: the lengths that batches are padded to.
      mesh: all devices.
      teacher: the teacher, or what it will be fine-tuned from.
      used: the ids of the words that the task uses; tokens number them from 0.
    """

    recipe: Recipe
    run: RunFolder
    task: Task
    tokenizer: Tokenizer
    tokens: Tokens
    dev: batching.Batches
    buckets: tuple[int, ...]
    mesh: jax.sharding.Mesh
    teacher: Model
    used: np.ndarray
    _kept: teaching.Kept | None = None

    def batches(self, number: int, batch_size: int | None) -> batching.Batches:
        """Return the training batches of a stage; each stage has its own order."""
        return batching.Batches(
            self.tokens,
            self.task.train.labels,
            batch_size=batch_size or self.recipe.data.batch_size,
            seed=self.recipe.seed + 1000 * number,
            buckets=self.buckets,
            multiple_of=self.mesh.size,
            pad_id=self.dev.pad_id,
        )

    def small(self, whole: Model) -> Model:
        """Return a model with the words that the task uses, as tokens number them."""
        return Model(*vocabulary.shrink(*whole, self.used))

    def start(self, stage: Stage, teacher: Model, before: Model) -> Model:
        """Return the model that a stage begins with."""
        source = stage.init.source
        if source not in ("previous", "teacher"):
            labels = teacher.config.id2label
            config, params = pretrained.load_pretrained(
                source,
                num_labels=teacher.config.num_labels,
                id2label=None if labels is None else dict(labels),
                problem_type=teacher.config.problem_type,
                seed=self.recipe.seed,
            )
            before = Model(config, params)
        chosen = teacher if source == "teacher" else before
        if stage.init.layers is None:
            return chosen
        layers = stage.init.layers
        config = dataclasses.replace(chosen.config, num_hidden_layers=len(layers))
        return Model(config, depth.take_layers(chosen.params, layers))

    def kept(
        self, stage: Stage, teacher: Model, start: Model, batches: batching.Batches
    ) -> teaching.Kept | None:
        """Return the teacher's outputs that a stage's loss reads, where they fit.

        A stage that reads what the stage before read takes over what that kept.
        """
        if not stage.cache_teacher:
            return None
        outputs, used = _used(stage, teacher, start, batches)
        if used is None:
            return None
        if self._kept is not None and used <= self._kept.names:
            return self._kept
        self._kept = None
        shapes = teaching.row_shapes(used, outputs)
        if teaching.size(shapes, batches) > min(MOST_KEPT_BYTES, _memory() // 4):
            return None
        apply = model.bert(teacher.config)
        kept = teaching.keep(apply, teacher.params, batches, outputs, used)
        total = batches.steps_per_epoch
        whole = None
        with self.run.progress(total, "teacher's outputs") as bar:
            for number, filled in enumerate(kept, 1):
                bar.update(number)
                whole = filled
        self._kept = whole
        return whole


def _memory() -> int:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container has less than its machine
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def _used(stage: Stage, teacher: Model, start: Model, batches: batching.Batches):
    """Return the shapes of the teacher's outputs and the names of those in use.

    The names are None where padding may be in use too.
    """
    batch = {k: v for k, v in batches.batch(0).items() if k != "index"}
    student = model.bert(start.config, stage.act)
    told = jax.eval_shape(model.bert(teacher.config), teacher.params, batch)
    said = jax.eval_shape(student, start.params, batch)
    if teaching.may_read_padding(stage.loss, said, told, batch):
        return told, None
    return told, teaching.used_outputs(stage.loss, said, told, batch)
