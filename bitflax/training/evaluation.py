"""A model's scores on what it does not learn from, over all processes' devices."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bitflax import data, distillation
from bitflax.data import Batches, CorpusBatches
from bitflax.training import ahead, hosts, parallel, steps
from bitflax.types import INPUTS, ApplyFn, Mean, Params


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
      quantize: maps latent parameters to what the model computes with, once; what
        is to be compiled of it, it compiles.
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
        self._quantize = quantize or (lambda params: params)
        self._function = steps.make_eval_step(apply, compiler_options)
        self._steps: dict[Any, ahead.Ahead] = {}

    def programs(self, params: Params) -> Iterator[ahead.Program]:
        """Yield what scoring these parameters, or their shapes, compiles."""
        shapes = jax.eval_shape(self._quantize, params)
        values = ahead.described(shapes, NamedSharding(self._mesh, P()))
        step = self._step(values)
        share = NamedSharding(self._mesh, P(parallel.AXIS))
        for shape in self._batches.shapes():
            ids = jax.ShapeDtypeStruct(shape, np.int32, sharding=share)
            yield ahead.Program(step, (values, dict.fromkeys(INPUTS, ids)))

    def _step(self, values: Params) -> ahead.Ahead:
        """Return what computes logits of a tree so formed: a file has no projection."""
        form = (jax.tree.structure(values), ahead.shapes(values))
        return self._steps.setdefault(form, ahead.Ahead(self._function))

    def logits(self, params: Params) -> np.ndarray:
        """Return the logits of all examples [examples, labels], in their order."""
        params = parallel.replicate(params, self._mesh)
        return self.logits_of(self._quantize(params))

    def logits_of(self, values: Params) -> np.ndarray:
        """Return the logits of what ``quantize`` gives, or of a file's values."""
        values, found = parallel.replicate(values, self._mesh), []
        step = self._step(values)
        # CPU devices that run ahead of each other can wait for each other for good.
        many = jax.default_backend() == "cpu" and self._mesh.size > 1
        for batch in self._batches.evaluation(hosts.process_part()):
            inputs = {name: batch[name] for name in INPUTS}
            sharded = parallel.shard_batch(inputs, self._mesh)
            logits = step(values, sharded)
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


class LossEvaluator:
    """Scores parameters by the loss on what a corpus holds out: the lower the better.

    Args:
      measure: ``(params, teacher, batch) -> {part of the loss: Mean}``.
      teacher: its parameters, on all devices.
      batches: the corpus.
      mesh: the devices that share a batch.
      compiler_options: as ``jax.jit`` takes them.
    """

    def __init__(
        self,
        measure: Callable[[Params, Params, Any], dict[str, Mean]],
        teacher: Params,
        batches: CorpusBatches,
        mesh: jax.sharding.Mesh,
        compiler_options: dict[str, Any] | None = None,
    ):
        compiled = jax.jit(measure, compiler_options=compiler_options)
        self._measure = ahead.Ahead(compiled)
        self._teacher, self._batches, self._mesh = teacher, batches, mesh

    def programs(self, params: Params) -> Iterator[ahead.Program]:
        """Yield what scoring these parameters, or their shapes, compiles."""
        whole, share = (NamedSharding(self._mesh, p) for p in (P(), P(parallel.AXIS)))
        rows, length = self._batches.rows, self._batches.length
        ids = jax.ShapeDtypeStruct((rows, length), np.int32, sharding=share)
        weight = jax.ShapeDtypeStruct((rows,), np.float32, sharding=share)
        batch = dict.fromkeys(INPUTS, ids) | {"weight": weight}
        shapes = (ahead.described(tree, whole) for tree in (params, self._teacher))
        yield ahead.Program(self._measure, (*shapes, batch))

    def __call__(self, params: Params) -> dict[str, float]:
        """Return ``{name: mean}`` of the loss and its parts."""
        found, params = [], parallel.replicate(params, self._mesh)
        for batch in self._batches.evaluation(hosts.process_part()):
            sharded = parallel.shard_batch(batch, self._mesh)
            # Read at once: CPU devices that run ahead may wait for good.
            found.append(jax.device_get(self._measure(params, self._teacher, sharded)))
        parts: Any = jax.tree.map(lambda *leaves: np.sum(leaves), *found)
        return {
            "loss": float(distillation.total(parts)),
            **{name: float(part) for name, part in parts.items() if name != "loss"},
        }
