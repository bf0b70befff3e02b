"""The bits and bytes of every tensor of a packed file or of dense weights."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bitflax import model, packed
from bitflax.errors import DamagedFile, InputMissing
from bitflax.inference.stored_model import PACKED_COPY, given_model


def tensor_sizes(path: str | Path) -> list[packed.SizeRow]:
    """Return a row for each tensor of a model.

    Args:
      path: a packed file, a run's folder, a file or a folder of dense weights, or a
        hub's ``OWNER/NAME``.

    Raises:
      InputMissing: there are no weights.
      DamagedFile: they are damaged.
    """
    path = given_model(path)
    if path.is_dir():
        if (path / PACKED_COPY).is_file():
            return packed.size_report(path / PACKED_COPY)
        if (path / "config.json").is_file():
            return _dense(model.read_state(path)[0])
        if not (path / "model.safetensors").is_file():
            raise _unpacked(path)
        return packed.size_report(path / "model.safetensors")
    if not path.is_file():
        fix = "give a packed model.safetensors, a run's folder or a model's"
        raise InputMissing(path, "no such file or folder", fix=fix)
    # In the folder of a dense model, a file may be either.
    if not (path.parent / "config.json").is_file() or _is_packed(path):
        return packed.size_report(path)
    if path.name.endswith(".index.json"):
        return _dense(model.read_state(path.parent)[0])
    return _dense(model.read_weights(path))


def _dense(state: Mapping[str, np.ndarray]) -> list[packed.SizeRow]:
    return [
        packed.SizeRow(name, 8 * array.dtype.itemsize, array.size, array.nbytes)
        for name, array in state.items()
    ]


def _is_packed(file: Path) -> bool:
    """Whether a file's header says that it is packed; another file is no error."""
    try:
        found = packed.guarded(packed.read_header, file)
    except DamagedFile:
        return False
    return found.metadata.get("format") == packed.FORMAT


def _unpacked(folder: Path) -> InputMissing:
    """Return the error of a run's folder that has no packed file yet."""
    stages = sorted(folder.glob("*-*/params"))
    fix = f"finish the run, or give {stages[-1]}" if stages else "give a run's folder"
    return InputMissing(folder, "no packed model.safetensors in it", fix=fix)
