"""Arrays on disk that are whole or made anew: a teacher's outputs in a run's cache.

They are NumPy's own files, mapped into memory: what a batch needs is read when it is
needed, and what the system has room for stays in memory.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bitflax import storage
from bitflax.errors import DamagedFile
from bitflax.types import Params


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
            storage.check_manifest(folder)
            self.whole = True
        except DamagedFile:
            self.whole = False
            with storage.disk(folder):
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
        with storage.disk(path):
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
        with storage.disk(self.folder):
            for array in self._made:
                array.flush()
            storage.write_manifest(self.folder, {})
        self.whole = True
