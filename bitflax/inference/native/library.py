"""The compiled engine, by its C interface: ``bitflax_native.h``."""

import ctypes
import functools
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitflax.errors import ConfigError, DamagedFile, DataError, StorageError
from bitflax.inference.native import building
from bitflax.types import INPUTS

MOST_THREADS = 256
_OK, _DAMAGED, _UNSUPPORTED, _INPUT, _TARGET, _MEMORY, _FILE = range(7)
_INTEGERS = np.ctypeslib.ndpointer(np.int32, flags=("C_CONTIGUOUS", "ALIGNED"))
_FLOATS = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")


@functools.cache
def load_library(path: Path | None = None) -> ctypes.CDLL:
    """Return the engine's library, its functions declared.

    Args:
      path: of the library; None: this machine's, which is compiled if need be.

    Raises:
      InputMissing: there is no compiler.
      StorageError: it does not compile, or the system does not load it.
    """
    if path is None:
        path = building.build().path
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise StorageError(path, str(error), fix="delete it, or --engine jax") from None
    model, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    number, real = ctypes.c_int32, ctypes.c_double
    made = ctypes.POINTER(ctypes.c_void_p)
    for name, result, takes in (
        ("message", text, [ctypes.c_int]),
        ("targets", text, []),
        ("open", ctypes.c_int, [text, text, ctypes.c_int, made]),
        ("create", ctypes.c_int, [model, size, text, ctypes.c_int, made]),
        (
            *("run", ctypes.c_int),
            [model, _INTEGERS, _INTEGERS, _INTEGERS, number, number, _FLOATS],
        ),
        ("labels", number, [model]),
        ("target", text, [model]),
        ("threads", number, [model]),
        ("bytes", size, [model]),
        ("speed", real, [text, number, number, number, real]),
        ("free", None, [model]),
    ):
        function = getattr(library, f"bitflax_{name}")
        function.restype, function.argtypes = result, takes
    return library


def usable_targets() -> tuple[str, ...]:
    """Return the targets that this processor runs, the likely fastest first."""
    return tuple(load_library().bitflax_targets().decode().split(","))


def speed(target: str, base: int, width: int = 768, seconds: float = 0.1) -> float:
    """Return a target's 10^9 multiply-adds a second on one core.

    Args:
      target: one of ``usable_targets``.
      base: 2 for binary matrices, 3 for ternary ones.
      width: of the square matrix.
      seconds: that it measures.
    """
    named = target.encode()
    return load_library().bitflax_speed(named, base, width, width, seconds)


class NativeModel:
    """A model of the native engine: a batch to its logits [rows, labels].

    Tokens whose mask is 0 are not computed. Several threads may call it; their calls
    wait for each other.

    Args:
      flat: a flat file's bytes, as ``to_flat`` makes them; nobody may change them.
      target: one of ``usable_targets``; None: the fastest here.
      threads: that compute together; None: all cores that the process may use.

    Raises:
      ConfigError: there is no such target, or not as many threads.
      DamagedFile: the bytes are no flat file's.
      MemoryError: there is no memory, or the system gives no more threads.
      InputMissing, StorageError: as ``load_library``.
    """

    def __init__(
        self, flat: np.ndarray, target: str | None = None, threads: int | None = None
    ):
        check_threads(threads)
        self._library = library = load_library()
        self._flat = flat
        self._model = ctypes.c_void_p()
        named = None if target is None else target.encode()
        status = library.bitflax_create(
            flat.ctypes.data, flat.nbytes, named, threads or 0, self._model
        )
        if status != _OK:
            raise _error(status, library.bitflax_message(status).decode(), target)
        weakref.finalize(self, _free, library, self._model, flat).atexit = False
        self._words, self._positions, self._types = shape_limits(flat)
        self.labels: int = library.bitflax_labels(self._model)

    @property
    def target(self) -> str:
        """The target that it runs on."""
        return self._library.bitflax_target(self._model).decode()

    @property
    def threads(self) -> int:
        """How many threads compute together."""
        return self._library.bitflax_threads(self._model)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds: the flat file's, and what was made of them."""
        return self._flat.nbytes + self._library.bitflax_bytes(self._model)

    def __call__(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Return the logits of a batch, float32 [rows, labels].

        Raises:
          DataError: an array is not of integers [rows, tokens], or holds what the
            model has no row for.
          MemoryError: there is no memory for so many tokens.
        """
        ids, mask, types = (_integers(name, batch[name]) for name in INPUTS)
        rows, tokens = ids.shape
        if mask.shape != ids.shape or types.shape != ids.shape:
            shapes = f"{ids.shape}, {mask.shape} and {types.shape}"
            raise _odd("batch", f"expected three arrays of one shape, found {shapes}")
        if not 0 < tokens <= self._positions:
            problem = f"expected 1 to {self._positions} tokens a row, found {tokens}"
            raise _odd("input_ids", problem)
        out = np.empty((rows, self.labels), np.float32)
        status = self._library.bitflax_run(
            self._model, ids, mask, types, rows, tokens, out
        )
        if status == _INPUT:
            self._refuse(ids, mask, types)
        if status != _OK:
            raise _error(status, self._library.bitflax_message(status).decode(), None)
        return out

    def _refuse(self, *arrays: np.ndarray) -> None:
        """Say which of a batch's arrays the engine refused, and why."""
        ends = (self._words, 2, self._types)
        for name, array, end in zip(INPUTS, arrays, ends, strict=True):
            if not (array.min() >= 0 and array.max() < end):
                problem = f"expected integers from 0 to {end - 1}, found "
                raise _odd(name, f"{problem}{array.min()} to {array.max()}")


def _free(library: ctypes.CDLL, model: ctypes.c_void_p, flat: np.ndarray) -> None:
    """Free a model; who will call this holds the bytes that the model reads."""
    library.bitflax_free(model)


def shape_limits(flat: np.ndarray) -> tuple[int, int, int]:
    """Return how many words, positions and token types a flat file's model has."""
    words = flat[64 : 64 + 4 * 9].view(np.int32)
    return int(words[0]), int(words[6]), int(words[7])


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no engine takes.

    Raises:
      ConfigError: it is none.

    >>> check_threads(2)
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        problem = f"expected 1 to {MOST_THREADS}, found {threads}"
        raise ConfigError("threads", problem, fix="leave it out: all cores compute")


def _integers(name: str, array: Any) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 2 or not (array.dtype == bool or array.dtype.kind in "iu"):
        found = f"{array.dtype} {list(array.shape)}"
        raise _odd(name, f"expected integers [rows, tokens], found {found}")
    if array.dtype.itemsize > 4 and array.size:
        ends = np.iinfo(np.int32)
        array = np.clip(array, ends.min, ends.max)
    return np.require(array, np.int32, ["C", "A"])


def _odd(name: str, problem: str) -> DataError:
    return DataError(name, problem, fix="give what the model's own tokenizer says")


def _error(status: int, message: str, target: str | None) -> Exception:
    if status == _TARGET:
        known = ", ".join(usable_targets())
        problem = f"no target {target!r} on this processor"
        return ConfigError("target", problem, fix=f"one of {known}")
    if status == _MEMORY:
        return MemoryError(f"the native engine: {message}")
    if status == _INPUT:
        return _odd("batch", message)
    fix = "export the model again, or take the engine jax"
    return DamagedFile("the flat file", message, fix=fix)
