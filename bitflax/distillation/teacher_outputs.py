"""A teacher's outputs, computed once and kept in memory.

A teacher in distillation has no dropout, so what it says of an example is the same in
every epoch. Kept outputs come with the batch, and ``outputs_reader`` makes the model
function that reads them there: the train step does not know the difference.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bitflax.data import Batches
from bitflax.distillation import losses
from bitflax.distillation.losses import Weighted
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
    jaxpr = jax.make_jaxpr(lambda t, s, b: loss(s, t, b))(teacher, student, dict(batch))
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    read |= {id(v) for v in jaxpr.jaxpr.outvars}
    names = _names(teacher)
    variables = jaxpr.jaxpr.invars[: len(names)]
    return frozenset(n for n, v in zip(names, variables, strict=True) if id(v) in read)


def may_read_padding(
    loss: LossFn, student: Outputs, teacher: Outputs, batch: Batch
) -> bool:
    """Whether a loss may read the teacher's padded positions, which are not kept.

    A loss of ``bitflax.distillation.losses`` says so by its options; of any other one
    it is known only where it reads the teacher's logits alone.
    """
    parts = loss.parts.values() if isinstance(loss, Weighted) else [(1.0, loss)]
    return any(
        _by_options(fn)
        if _unbound(fn).__module__ == losses.__name__
        else not used_outputs(fn, student, teacher, batch) <= {"logits"}
        for _, fn in parts
    )


def _unbound(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _by_options(fn: Any) -> bool:
    options = getattr(fn, "keywords", {})
    return bool(options.get("count_padding")) or options.get("mask_value") is not None


def outputs_reader(teacher: Outputs) -> ApplyFn:
    """Return the model function that reads kept outputs from the batch.

    Args:
      teacher: outputs of the teacher, for how many hidden states and scores it has.
    """
    depth, layers = len(teacher.hidden), len(teacher.scores)

    def apply(params: Any, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        get = batch.get
        hidden = tuple(get(f"{PREFIX}hidden_{i}") for i in range(depth))
        scores = tuple(get(f"{PREFIX}scores_{i}") for i in range(layers))
        return Outputs(get(f"{PREFIX}logits"), hidden, scores)

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
        lengths = np.asarray(batches.tokens.lengths)
        self._buckets = np.asarray(batches.buckets)
        self._bucket = np.searchsorted(self._buckets, lengths)
        self._place = np.zeros(len(lengths), np.int64)
        self._store: dict[int, dict[str, np.ndarray]] = {}
        for number, size in enumerate(self._buckets.tolist()):
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
        for number, rows in self._by_bucket(index):
            place = self._place[index[rows]]
            for name, array in self._store[number].items():
                cut = tuple(slice(n) for n in array.shape[1:])
                array[place] = outputs[name][(rows, *cut)]

    def add_to(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the batch with the kept outputs of its examples; 0 in padding."""
        index, length = batch["index"], batch["input_ids"].shape[1]
        out = {
            name: np.zeros((len(index), *shape(length)), np.float32)
            for name, shape in self._shapes.items()
        }
        for number, rows in self._by_bucket(index):
            place = self._place[index[rows]]
            for name, array in self._store[number].items():
                cut = tuple(slice(n) for n in array.shape[1:])
                out[name][(rows, *cut)] = array[place]
        return batch | {PREFIX + name: array for name, array in out.items()}

    def _by_bucket(self, index: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        buckets = np.where(index >= 0, self._bucket[index], -1)
        for number in np.unique(buckets[buckets >= 0]).tolist():
            yield number, np.flatnonzero(buckets == number)


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


def outputs_size(names: frozenset[str], outputs: Outputs, batches: Batches) -> int:
    """Return the bytes that keeping these outputs of all examples would take."""
    shapes = _row_shapes(names, outputs).values()
    buckets = np.asarray(batches.buckets)
    number = np.searchsorted(buckets, np.asarray(batches.tokens.lengths))
    counts = np.bincount(number, minlength=len(buckets))
    row = [sum(np.prod(shape(n)) for shape in shapes) for n in buckets.tolist()]
    return 4 * int(counts @ np.array(row, np.float64))


def fill(
    teacher: ApplyFn,
    params: Params,
    batches: Batches,
    outputs: Outputs,
    names: frozenset[str],
    *,
    share: Callable[[Batch], Batch] = dict,
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
    """
    kept = TeacherOutputs(names, outputs, batches)

    @jax.jit
    def run(params, batch):
        out = teacher(params, batch)
        flat = dict(zip(_names(out), jax.tree.leaves(out), strict=True))
        return {name: flat[name] for name in names}

    for batch in batches.evaluation():
        inputs = {name: batch[name] for name in INPUTS}
        kept.put(batch["index"], jax.device_get(run(params, share(inputs))))
        yield kept
