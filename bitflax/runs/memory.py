"""Memory of a run: freed pages are kept, and garbage is looked for less often."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator

# glibc's malloc.h: what mallopt's parameters are called there.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_pages() -> bool:
    """Tell glibc not to give freed memory back to the kernel.

    On a CPU, XLA allocates a step's large buffers anew in each step. By default glibc
    maps and unmaps them, and their pages are faulted in again: a quarter of a step when
    steps alone were timed on two cores, though no whole run was seen to be faster.
    Works best before jax starts its threads.

    Returns:
      Whether the C library took it; other platforms have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for garbage a seventieth as often; then as it was.

    With jax imported, each look visits some hundred thousand objects, and reading data
    or tracing a model makes objects by the ten thousand: a sixth of a run's start was
    spent on garbage that was not there.

    >>> before = gc.get_threshold()
    >>> with rare_collections():
    ...     gc.get_threshold() > before
    True
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
