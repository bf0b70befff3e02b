"""A teacher's outputs, computed once and kept in memory or on disk.

A teacher in distillation has no dropout, so what it says of an example is the same in
every epoch. Kept outputs come with the batch, and ``reader`` is the model function
that reads them there: the train step does not know the difference.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bitflax import files
from bitflax.data import Batches
from bitflax.distillation import losses
from bitflax.distillation.losses import Weighted
from bitflax.errors import DamagedFile
from bitflax.types import ApplyFn, Batch, LossFn, Outputs, Params

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
      array: ``(name, shape)`` makes a float32 array, or finds it filled already; None:
        in memory.
    """

    def __init__(
        self,
        names: frozenset[str],
        outputs: Outputs,
        batches: Batches,
        array: Callable[[str, tuple[int, ...]], np.ndarray] | None = None,
    ):
        array = array or _in_memory
        self.names, self.outputs = names, outputs
        self._shapes = row_shapes(names, outputs)
        lengths = np.asarray(batches.tokens.lengths)
        self._buckets = np.asarray(batches.buckets)
        self._bucket = np.searchsorted(self._buckets, lengths)
        self._place = np.zeros(len(lengths), np.int64)
        self._store: dict[int, dict[str, np.ndarray]] = {}
        for number, size in enumerate(self._buckets.tolist()):
            rows = np.flatnonzero(self._bucket == number)
            self._place[rows] = np.arange(len(rows))
            self._store[number] = {
                name: array(f"{size}-{name}", (len(rows), *shape(size)))
                for name, shape in self._shapes.items()
            }

    @property
    def nbytes(self) -> int:
        """The memory that the outputs take."""
        stores = self._store.values()
        return sum(array.nbytes for store in stores for array in store.values())

    @property
    def in_memory(self) -> int:
        """The memory that those take that are not on disk."""
        arrays = [array for store in self._store.values() for array in store.values()]
        return sum(a.nbytes for a in arrays if not isinstance(a, np.memmap))

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


def _in_memory(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.float32)


def row_shapes(names: frozenset[str], teacher: Outputs) -> dict[str, Any]:
    """Return ``{name: length -> shape of one row}`` of outputs by name.

    Args:
      names: of ``used_outputs``.
      teacher: the teacher's outputs, or their shapes, of any batch.
    """
    flat = dict(zip(_names(teacher), jax.tree.leaves(teacher), strict=True))

    def shape_of(name: str) -> Any:
        shape = flat[name].shape
        if name == "logits":
            return lambda length: shape[1:]
        if name.startswith("hidden"):
            return lambda length: (length, shape[-1])
        return lambda length: (shape[1], length, length)

    return {name: shape_of(name) for name in sorted(names)}


def outputs_size(shapes: Mapping[str, Any], batches: Batches) -> int:
    """Return the bytes that keeping these outputs of all examples would take."""
    buckets = np.asarray(batches.buckets)
    number = np.searchsorted(buckets, np.asarray(batches.tokens.lengths))
    counts = np.bincount(number, minlength=len(buckets))
    row = [
        sum(np.prod(shape(n)) for shape in shapes.values()) for n in buckets.tolist()
    ]
    return 4 * int(counts @ np.array(row, np.float64))


def fill(
    teacher: ApplyFn,
    params: Params,
    batches: Batches,
    outputs: Outputs,
    names: frozenset[str],
    *,
    array: Any = None,
    share: Callable[[Batch], Batch] = dict,
) -> Iterator[TeacherOutputs]:
    """Compute and keep a teacher's outputs; yields after each batch, for progress.

    Args:
      teacher: the teacher's ``apply``.
      params: its parameters.
      batches: whose examples are run.
      outputs: the shapes of its outputs.
      names: which of them, from ``used_outputs``.
      array: as ``Kept`` takes it.
      share: shares a batch's rows out over devices; where it does, ``params`` are
        replicated.
    """
    kept = TeacherOutputs(names, outputs, batches, array)

    @jax.jit
    def run(params, batch):
        out = teacher(params, batch)
        flat = dict(zip(_names(out), jax.tree.leaves(out), strict=True))
        return {name: flat[name] for name in names}

    for batch in batches.evaluation():
        inputs = {k: v for k, v in batch.items() if k not in ("index", "labels")}
        kept.put(batch["index"], jax.device_get(run(params, share(inputs))))
        yield kept


def digest(params: Params, arrays: Mapping[str, Any], **settings: Any) -> str:
    """Return the SHA-256 of parameters, arrays and settings, in hexadecimal.

    >>> digest({}, {"ids": np.arange(3)}, names=["logits"])[:8]
    'd4d2209f'
    """
    found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode())
    leaves, _ = jax.tree_util.tree_flatten_with_path((params, dict(arrays)))
    for path, leaf in leaves:
        array = np.ascontiguousarray(leaf)
        found.update(f"{path} {array.dtype} {array.shape}".encode())
        found.update(array.view(np.uint8).data)
    return found.hexdigest()


class Files:
    """A folder of float32 arrays that are filled once and read ever after.

    Whole is what ``finish`` sealed and nobody changed since (size and SHA-256 of each
    file); anything else in the folder is removed, and the arrays are new and zero.

    Args:
      folder: the arrays' own; named after all that decides what they hold.

    Raises:
      StorageError: it cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            files.check_manifest(folder)
            self.whole = True
        except DamagedFile:
            self.whole = False
            with files.disk(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
        self._made: list[np.memmap] = []

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array: to be filled, or to be read where the folder is whole.

        Raises:
          StorageError: the disk has no room for it.
        """
        path = self.folder / f"{name}.npy"
        if not np.prod(shape):
            return np.zeros(shape, np.float32)
        if self.whole:
            return np.load(path, mmap_mode="r")
        with files.disk(path):
            kind: Any = {"mode": "w+", "dtype": np.float32, "shape": shape}
            made = np.lib.format.open_memmap(path, **kind)
            # A full disk is found out here, and not as a bus error later.
            with contextlib.suppress(AttributeError), open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        self._made.append(made)
        return made

    def finish(self) -> None:
        """Seal the folder: all that was written is whole.

        Raises:
          StorageError: it cannot be written.
        """
        with files.disk(self.folder):
            for array in self._made:
                array.flush()
            files.write_manifest(self.folder, {})
        self.whole = True
