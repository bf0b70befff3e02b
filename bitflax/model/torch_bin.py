"""Read ``pytorch_model.bin`` without torch, and run nothing in it.

``torchpickle`` reads what the file says of its tensors; here their sizes, strides and
offsets are held against the bytes that are there before an array is made of them.

Source: ``torch/serialization.py``, both formats.
"""

import errno
import math
import mmap
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitflax.errors import DamagedFile, InputMissing, StorageError
from bitflax.model import torchpickle

# What reading a file that was cut or changed may end in.
_BROKEN = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
)


_MAGIC = 0x1950A86A20F9469CFC6C  # before the legacy format's pickles


_PROTOCOL = 1001


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a state that ``torch.save`` wrote.

    Both formats are read: the zip file, and the one before torch 1.6. The arrays are
    read-only; bfloat16 is that of ``ml_dtypes``.

    Raises:
      InputMissing: there is no such file.
      DamagedFile: it is damaged, hostile, or no flat ``{name: tensor}``.
    """
    try:
        with path.open("rb") as file:
            read_format = _read_zip if _is_zip(file) else _read_legacy
            state, storages = read_format(file)
        return {name: _array(tensor, storages) for name, tensor in _items(state)}
    except FileNotFoundError:
        raise InputMissing(path, "no such file", fix="give another file") from None
    except torchpickle.HostilePickleError as error:
        raise DamagedFile(
            path,
            f"hostile pickle refused: {error}",
            fix="do not use this file; a state saved as safetensors holds no code",
        ) from None
    except (*_BROKEN, OSError) as error:
        # Seeking to before the start, as a broken zip file asks for, is EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise StorageError(
                path, f"cannot read it ({error.strerror})", fix="check rights and disk"
            ) from None
        raise DamagedFile(
            path, f"not a whole PyTorch state ({error})", fix="fetch the file again"
        ) from None


def _is_zip(file: BinaryIO) -> bool:
    start = file.read(4)
    file.seek(0)
    return start == b"PK\x03\x04"


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """Return the state, its tensors not yet arrays, and the storages' bytes."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # torch compresses nothing, so that no entry can swell beyond the file.
        length = file.seek(0, os.SEEK_END)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("an entry is compressed")
        if sum(entry.file_size for entry in entries) > length:
            raise ValueError("its entries overlap")
        names = archive.namelist()
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in names and archive.read(order) != b"little":
            raise ValueError("the bytes are not little-endian")
        state, asked = torchpickle.run(archive.read(pickled))
        return state, {key: archive.read(f"{root}data/{key}") for key in asked}


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    # Of a map, no read is longer than the file, whatever length is asked for.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if torchpickle.run(view)[0] != _MAGIC or torchpickle.run(view)[0] != _PROTOCOL:
            raise ValueError("neither a zip file nor the older format")
        if torchpickle.run(view)[0]["little_endian"] is not True:
            raise ValueError("the bytes are not little-endian")
        state, asked = torchpickle.run(view)
        storages = {}
        for key in torchpickle.run(view)[0]:
            (numel,) = struct.unpack("<q", view.read(8))
            if numel != asked[key].numel:
                raise ValueError(f"storage {key} has {numel} values")
            storages[key] = view.read(numel * asked[key].dtype.itemsize)
    return state, storages


def _items(state: Any) -> list[tuple[str, torchpickle.Tensor]]:
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__} and no state")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torchpickle.Tensor):
            raise ValueError(f"{str(name)[:80]} is no tensor")
    return list(state.items())


def _array(tensor: torchpickle.Tensor, storages: dict[str, bytes]) -> np.ndarray:
    """Return the array, after all it says is held against its storage."""
    storage, offset, shape, strides = tensor
    data = storages[storage.key]
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} has {len(data)} bytes")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"a tensor has shape {shape}, strides {strides}")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if size and (last >= storage.numel or size > storage.numel):
        raise ValueError(f"a tensor of shape {shape} lies outside its storage")
    if not size:
        return np.zeros(shape, storage.dtype)
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(data, storage.dtype)[offset:],
        shape,
        tuple(step * storage.dtype.itemsize for step in strides),
        writeable=False,
    )
