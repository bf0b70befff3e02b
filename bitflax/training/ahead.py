"""Programs that are compiled before they are called, beside the steps that run.

All programs of a stage are known before its first step, by the shapes of its batches.
XLA compiles without Python's lock, so threads do it. Traced a program is by its caller:
what stands around a run (``jax.enable_x64``) holds in the caller's thread alone, and
where it would only wait for another program it loses nothing.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

PERIOD = 0.1
"""Seconds after which one who waits looks whether to stop."""


class Ahead:
    """A jitted function, of which programs may be compiled before they are called.

    Programs are told apart by the shapes of the last argument, a batch; the others
    always have the same. A call whose program is being compiled waits for it, and
    raises what the compiler raised; one of other shapes goes to the function itself.

    Args:
      function: from ``jax.jit``, or what is called and lowered as that is.

    >>> double = Ahead(jax.jit(lambda x: 2 * x))
    >>> with concurrent.futures.ThreadPoolExecutor(1) as pool:
    ...     Program(double, (jax.ShapeDtypeStruct((2,), np.float32),)).begin(pool)
    >>> double(np.ones(2, np.float32)), double(np.ones(3, np.float32)).shape
    (Array([2., 2.], dtype=float32), (3,))
    """

    def __init__(self, function: Any):
        self.function = function
        self.begun: dict[Any, concurrent.futures.Future[Callable[..., Any]]] = {}

    def __call__(self, *args: Any) -> Any:
        """Run the program of these arguments."""
        # Where nothing is ahead, shapes are not asked for.
        found = self.begun.get(shapes(args[-1])) if self.begun else None
        if found is None or found.cancelled():
            return self.function(*args)
        return found.result()(*args)


def shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a batch's arrays.

    >>> shapes({"weight": np.ones(4), "input_ids": np.ones((4, 8))})
    ((4, 8), (4,))
    """
    return tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))


def described(tree: Any, sharding: Any = None) -> Any:
    """Return the shapes of arrays and where they lie, to lower a program for them.

    Args:
      tree: of arrays or shapes.
      sharding: where they will lie; None: as each does, which an array of NumPy's
        leaves to the program.

    >>> described({"x": np.ones(3, np.float32)})
    {'x': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        place = getattr(leaf, "sharding", None) if sharding is None else sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(one, tree)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a function: ``args`` are arrays, or what ``described`` returns."""

    function: Ahead
    args: tuple[Any, ...]

    @property
    def begun(self) -> concurrent.futures.Future[Callable[..., Any]] | None:
        """Its compilation; None: not yet begun."""
        return self.function.begun.get(shapes(self.args[-1]))

    @property
    def is_made(self) -> bool:
        """Whether it is compiled, or cannot be."""
        return self.begun is not None and self.begun.done()

    def begin(self, pool: concurrent.futures.Executor) -> None:
        """Trace it here and compile it there, unless that was begun before."""
        if self.begun is None:
            lowered = self.function.function.lower(*self.args)
            future = pool.submit(lowered.compile)
            self.function.begun[shapes(self.args[-1])] = future


class Compilation:
    """The compiling of a training's programs; a context manager.

    Leaving it, what was not begun stays so; what is being compiled goes on alone.

    Args:
      programs: in the order of their first calls.
      threads: that compile; 0: each program is compiled when it is called.

    Attributes:
      count: how many programs there are.
    """

    def __init__(self, programs: Iterable[Program], threads: int):
        self._programs = list(programs) if threads else []
        self.count = len(self._programs)
        self._left = list(self._programs)
        workers = max(threads, 1)  # they start with the first program
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, "compile")

    def __enter__(self) -> "Compilation":
        """Return the compilation itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin_next(self) -> None:
        """Begin one program more, where one is left."""
        if self._left:
            self._left.pop(0).begin(self._pool)

    def wait(self, batch: Any = None) -> Iterator[tuple[int, int]]:
        """Yield ``(at work on which, of how many)`` until what is needed is there.

        Others are traced meanwhile. One that cannot be compiled is there too: its call
        raises.

        Args:
          batch: whose program is needed, and begun first; None: all are.
        """
        needed = [
            program
            for program in self._programs
            if batch is None or shapes(program.args[-1]) == shapes(batch)
        ]
        for program in needed:
            program.begin(self._pool)
        while not all(program.is_made for program in needed):
            made = sum(program.is_made for program in self._programs)
            yield made + 1, self.count
            if self._left:
                self.begin_next()
            else:
                begun = [program.begun for program in needed if program.begun]
                concurrent.futures.wait(begun, PERIOD)
