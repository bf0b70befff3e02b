"""A model's scores on a task's dev examples, over all devices of all processes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bitflax import data
from bitflax.data import Batches
from bitflax.training import hosts, parallel, steps
from bitflax.types import INPUTS, ApplyFn, Params


class Evaluator:
    """Scores parameters; compiled once for each shape of the batches.

    Args:
      apply: the model.
      batches: the dev examples.
      labels: [examples] class numbers in the order of the logits, or real numbers;
        None: there are logits, and no scores.
      scores: ``(predictions, labels) -> {name: value}``, as ``Task.scores``.
      regression: whether labels are real numbers.
      mesh: the devices that share a batch.
      quantize: maps latent parameters to what the model computes with, once.
      compiler_options: as ``jax.jit`` takes them.
    """

    def __init__(
        self,
        apply: ApplyFn,
        batches: Batches,
        labels: np.ndarray | None,
        scores: Callable[[np.ndarray, np.ndarray], dict[str, float]],
        regression: bool,
        mesh: jax.sharding.Mesh,
        quantize: Callable[[Params], Params] | None = None,
        compiler_options: dict[str, Any] | None = None,
    ):
        self._batches, self._labels, self._scores = batches, labels, scores
        self._regression, self._mesh = regression, mesh
        self._quantize = None if quantize is None else jax.jit(quantize)
        self._step = steps.make_eval_step(apply, compiler_options)

    def logits(self, params: Params) -> np.ndarray:
        """Return the logits of all examples [examples, labels], in their order."""
        params = parallel.replicate(params, self._mesh)
        values = params if self._quantize is None else self._quantize(params)
        found = []
        # CPU devices that run ahead of each other can wait for each other for good.
        many = jax.default_backend() == "cpu" and self._mesh.size > 1
        for batch in self._batches.evaluation(hosts.process_part()):
            inputs = {name: batch[name] for name in INPUTS}
            sharded = parallel.shard_batch(inputs, self._mesh)
            logits = self._step(values, sharded)
            if many:
                jax.block_until_ready(logits)
            found.append((batch["index"], logits))
        rows = np.concatenate([index for index, _ in found])
        logits = np.concatenate([parallel.own_rows(part) for _, part in found])
        out = np.zeros((len(self._batches.tokens), logits.shape[1]), np.float32)
        out[rows[rows >= 0]] = logits[rows >= 0]
        return parallel.summed(out)  # each row is of one process

    def __call__(self, params: Params) -> dict[str, float]:
        """Return ``{name: value}`` of the metric and what stands beside it."""
        assert self._labels is not None
        said = data.predictions(self.logits(params), regression=self._regression)
        return self._scores(said, self._labels)
