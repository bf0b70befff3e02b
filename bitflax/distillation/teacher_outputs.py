"""A teacher's outputs, computed once and kept in memory.

A teacher in distillation has no dropout, so what it says of an example is the same in
every epoch. Kept outputs come with the batch, and ``outputs_reader`` makes the model
function that reads them there: the train step does not know the difference.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitflax import trees
from bitflax.data import Batches
from bitflax.distillation import losses
from bitflax.distillation.weighting import Weighted
from bitflax.types import INPUTS, ApplyFn, Batch, LossFn, Outputs, Params

PREFIX = "teacher_"


def _names(outputs: Outputs) -> list[str]:
    hidden = [f"hidden_{i}" for i in range(len(outputs.hidden))]
    return ["logits", *hidden, *(f"scores_{i}" for i in range(len(outputs.scores)))]


def used_outputs(
    loss: LossFn, student: Outputs, teacher: Outputs, batch: Batch
) -> frozenset[str]:
    """Return which of the teacher's outputs a loss reads.

    Args:
      loss: the loss.
      student: its outputs, or ``jax.ShapeDtypeStruct`` of their shapes.
      teacher: the teacher's, likewise.
      batch: a batch, likewise.

    >>> from bitflax.distillation import losses
    >>> out = Outputs(jax.ShapeDtypeStruct((2, 3), "float32"), (), ())
    >>> used_outputs(losses.soft_cross_entropy, out, out, {})
    frozenset({'logits'})
    """
    given = (student, teacher, dict(batch))
    _, read, _ = trees.leaves_read(lambda given: loss(*given), given)
    named = zip(_names(teacher), jax.tree.leaves(read), strict=True)
    return frozenset(name for name, is_read in named if is_read)


def may_read_padding(
    loss: LossFn, student: Outputs, teacher: Outputs, batch: Batch
) -> bool:
    """Whether a loss may read the teacher's padded positions, which are not kept.

    Logits have none; of what else it reads, a loss says it itself (``reads_padding``).
    """
    parts = [(1.0, loss)] if not isinstance(loss, Weighted) else loss.parts.values()
    return any(
        losses.reads_padding(part)
        and not used_outputs(part, student, teacher, batch) <= {"logits"}
        for _, part in parts
    )


def outputs_reader(teacher: Outputs) -> ApplyFn:
    """Return the model function that reads kept outputs from the batch.

    Those that were not kept are NaN: nothing of a loss is computed from them.

    Args:
      teacher: outputs of the teacher, or their shapes, of any batch.
    """
    shapes = _row_shapes(frozenset(_names(teacher)), teacher)

    def apply(params: Any, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        rows, length = batch["input_ids"].shape

        def read(name: str) -> Any:
            if PREFIX + name in batch:
                return batch[PREFIX + name]
            return jnp.full((rows, *shapes[name](length)), jnp.nan)

        found = [read(name) for name in _names(teacher)]
        return jax.tree.unflatten(jax.tree.structure(teacher), found)

    return apply


class TeacherOutputs:
    """A teacher's outputs for all examples, float32, each as long as its own bucket.

    Args:
      names: which outputs.
      outputs: the teacher's outputs, or their shapes, of any batch.
      batches: the training batches.
    """

    def __init__(self, names: frozenset[str], outputs: Outputs, batches: Batches):
        self.names, self.outputs = names, outputs
        self._shapes = _row_shapes(names, outputs)
        self._bucket = batches.bucket
        self._place = np.zeros(len(batches.tokens), np.int64)
        self._store: dict[int, dict[str, np.ndarray]] = {}
        for number, size in enumerate(batches.buckets):
            rows = np.flatnonzero(self._bucket == number)
            self._place[rows] = np.arange(len(rows))
            self._store[number] = {
                name: np.empty((len(rows), *shape(size)), np.float32)
                for name, shape in self._shapes.items()
            }

    @property
    def nbytes(self) -> int:
        """The memory that the outputs take."""
        stores = self._store.values()
        return sum(array.nbytes for store in stores for array in store.values())

    def put(self, index: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Keep the outputs of the examples ``index`` (-1: a filler row)."""
        buckets = np.where(index >= 0, self._bucket[index], -1)
        for number in np.unique(buckets[buckets >= 0]).tolist():
            rows = np.flatnonzero(buckets == number)
            place = self._place[index[rows]]
            for name, array in self._store[number].items():
                part = (rows, *map(slice, array.shape[1:]))
                array[place] = outputs[name][part]

    def add_to(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the batch with the kept outputs of its examples; 0 in padding."""
        index, length = batch["index"], batch["input_ids"].shape[1]
        out = {
            name: np.empty((len(index), *shape(length)), np.float32)
            for name, shape in self._shapes.items()
        }
        buckets, places = self._bucket[index].tolist(), self._place[index].tolist()
        examples = zip(index, buckets, places, strict=True)
        # Row by row: picked all at once they were copied twice, into zeros.
        for row, (example, number, place) in enumerate(examples):
            for name, array in out.items():
                kept = self._store[number][name][place]
                if example < 0 or kept.shape != array.shape[1:]:
                    array[row] = 0
                if example >= 0:
                    array[(row, *map(slice, kept.shape))] = kept
        return batch | {PREFIX + name: array for name, array in out.items()}


def _row_shapes(names: frozenset[str], teacher: Outputs) -> dict[str, Any]:
    """Return ``{name: length -> shape of one row}`` of a teacher's outputs by name."""
    flat = dict(zip(_names(teacher), jax.tree.leaves(teacher), strict=True))

    def shape_of(name: str) -> Any:
        shape = flat[name].shape
        if name == "logits":
            return lambda length: shape[1:]
        if name.startswith("hidden"):
            return lambda length: (length, shape[-1])
        return lambda length: (shape[1], length, length)

    return {name: shape_of(name) for name in sorted(names)}


def fingerprint(
    teacher_params: Params, batches: Batches, dtype: str | None
) -> tuple[Any, ...]:
    """Return what kept outputs depend on: another for other texts or weights."""
    tokens, sha256 = batches.tokens, hashlib.sha256()
    texts = (tokens.ids, tokens.types, tokens.offsets)
    for leaf in [*jax.tree.leaves(teacher_params), *texts]:
        sha256.update(np.asarray(leaf).tobytes())
    return (sha256.hexdigest(), batches.rows, batches.buckets, dtype)


def outputs_size(names: frozenset[str], outputs: Outputs, batches: Batches) -> int:
    """Return the bytes that keeping these outputs of all examples would take."""
    shapes = _row_shapes(names, outputs).values()
    counts = np.bincount(batches.bucket, minlength=len(batches.buckets))
    row = [sum(np.prod(shape(n)) for shape in shapes) for n in batches.buckets]
    return 4 * int(counts @ np.array(row, np.float64))


def fill(
    teacher: ApplyFn,
    params: Params,
    batches: Batches,
    outputs: Outputs,
    names: frozenset[str],
    *,
    share: Callable[[Batch], Batch] = dict,
    compiler_options: dict[str, Any] | None = None,
) -> Iterator[TeacherOutputs]:
    """Compute and keep a teacher's outputs; yields after each batch, for progress.

    Args:
      teacher: the teacher's ``apply``.
      params: its parameters.
      batches: whose examples are run.
      outputs: the shapes of its outputs.
      names: which of them, from ``used_outputs``.
      share: shares a batch's rows out over devices; where it does, ``params`` are
        replicated.
      compiler_options: as ``jax.jit`` takes them.
    """
    kept = TeacherOutputs(names, outputs, batches)

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def run(params, batch):
        out = teacher(params, batch)
        flat = dict(zip(_names(out), jax.tree.leaves(out), strict=True))
        return {name: flat[name] for name in names}

    for batch in batches.evaluation():
        inputs = {name: batch[name] for name in INPUTS}
        kept.put(batch["index"], jax.device_get(run(params, share(inputs))))
        yield kept
