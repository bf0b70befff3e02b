"""What a stage of general distillation learns from: text, and no labels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bitflax.data.corpus import CorpusBatches
from bitflax.data.text import Tokenizer
from bitflax.distillation import projection, weighting
from bitflax.model.apply import bert
from bitflax.quantization.rules import quantize
from bitflax.recipe.recipe import Stage
from bitflax.runs.experiment import Model
from bitflax.runs.folder import RunFolder
from bitflax.training import hosts, parallel
from bitflax.types import BertConfig, Mean, Params


@dataclasses.dataclass
class General:
    """A corpus as its stage sees it; in place of a ``bitflax.runs.experiment.Lesson``.

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

    def kept(self, *args: Any) -> None:
        """Return None: no piece comes often enough to keep its teacher's outputs."""

    def scorer(
        self, stage: Stage, student: BertConfig
    ) -> Callable[[Params], dict[str, float]]:
        """Return ``params -> {part of the loss: mean}`` on what is held out."""
        apply = projection.projected(bert(student, stage.act))
        teach = bert(self.teacher.config)
        teacher = parallel.replicate(self.teacher.params, self.mesh)
        # What is held out does not depend on the order.
        batches = self._batches(0, stage)

        @jax.jit
        def measure(params: Params, teacher: Params, batch: Any) -> dict[str, Mean]:
            values = quantize(params, stage.rules) if stage.rules else params
            parts = stage.loss(apply(values, batch), teach(teacher, batch), batch)
            return {"loss": parts} if isinstance(parts, Mean) else parts

        def score(params: Params) -> dict[str, float]:
            found, params = [], parallel.replicate(params, self.mesh)
            for batch in batches.evaluation(hosts.part()):
                sharded = parallel.shard_batch(batch, self.mesh)
                # Read at once: CPU devices that run ahead may wait for good.
                found.append(jax.device_get(measure(params, teacher, sharded)))
            parts: Any = jax.tree.map(lambda *leaves: np.sum(leaves), *found)
            return {
                "loss": float(weighting.total(parts)),
                **{name: float(part) for name, part in parts.items() if name != "loss"},
            }

        return score
