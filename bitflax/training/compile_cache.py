"""Compiled programs on the disk, for as long as a run or a command lasts."""

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import jax

_PLACE = "jax_compilation_cache_dir"
_LEAST = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def compiled_in(folder: str | Path, least: float = 0.5) -> Iterator[None]:
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


@contextlib.contextmanager
def compiled_for_user(shared: str | Path | None = None) -> Iterator[None]:
    """Keep what jax compiles in this user's cache folder, for the next command.

    ``$XDG_CACHE_HOME/bitflax/<machine>``, by default in ``~/.cache``; may be deleted.
    A home folder may be shared by machines of different processors, so each has its
    own. Where the folder cannot be made, or others could write to it, what is compiled
    is kept in ``shared``. So it is with many processes, of which one compiles for all.

    Args:
      shared: a folder that all processes see; None: nothing is kept then.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        machine = re.sub(r"[^\w.-]", "_", platform.node()) or "machine"
        folder = Path(base) / "bitflax" / machine
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        own = found.st_uid == os.getuid() and not found.st_mode & 0o022
    except (OSError, RuntimeError):  # no home
        own = False
    alone = shared is None or jax.process_count() == 1
    place = folder if own and alone else shared
    with compiled_in(place, least=0.2) if place else contextlib.nullcontext():
        yield
