"""How often Python looks for garbage while a run lasts."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for garbage a seventieth as often; then as it was.

    With jax imported, each look visits some hundred thousand objects, and reading data
    or tracing a model makes objects by the ten thousand: a sixth of a run's start was
    spent on garbage that was not there.

    >>> before = gc.get_threshold()
    >>> with rare_collections():
    ...     gc.get_threshold()
    (50000, 20, 20)
    >>> gc.get_threshold() == before
    True
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
