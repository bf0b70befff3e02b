"""Compiled programs on the disk, for as long as a run lasts."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

_PLACE = "jax_compilation_cache_dir"
_LEAST = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def kept_in(folder: str | Path, least: float = 0.5) -> Iterator[None]:
    """Keep what jax compiles in a folder and take it from there; then as it was.

    A resumed run compiles nothing anew. A cache that is set already
    (``JAX_COMPILATION_CACHE_DIR``) is used instead.

    Args:
      folder: made if need be; may be deleted afterwards.
      least: programs that compile in fewer seconds are not kept.
    """
    if getattr(jax.config, _PLACE, None) is not None:
        yield
        return
    from jax.experimental.compilation_cache import compilation_cache

    before = getattr(jax.config, _LEAST)
    jax.config.update(_PLACE, str(folder))
    jax.config.update(_LEAST, least)
    # What was compiled before, without a cache, would keep it off for good.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(_PLACE, None)
        jax.config.update(_LEAST, before)
        compilation_cache.reset_cache()
