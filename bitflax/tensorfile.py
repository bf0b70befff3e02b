"""A safetensors file that trusts nothing: strict header, checksum, atomic write.

The container is safetensors' (a uint64 length, a JSON header, the tensors' bytes), so
that its own library reads our files; what is stricter here is named in
``bitflax.packing``. Every function raises ValueError with what is wrong;
``bitflax.packing`` puts the file's name to it.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitflax import storage

MAX_HEADER = 1 << 20
DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """Where a tensor lies: bytes ``start`` to ``stop`` of the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a file says of itself; ``size`` counts its bytes up to the data."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    size: int


def _pairs(found: list) -> dict:
    table = dict(found)
    if len(table) != len(found):
        seen: set[str] = set()
        double = next(key for key, _ in found if key in seen or seen.add(key))
        raise ValueError(f"the key {double!r} is there twice")
    return table


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def strict_json(text: str | bytes, what: str) -> Any:
    """Parse JSON; refuse double keys, NaN, infinities and nesting without end.

    >>> strict_json('{"a": 1, "a": 2}', "config")
    Traceback (most recent call last):
    ValueError: config: the key 'a' is there twice
    """

    try:
        return json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except RecursionError:
        raise ValueError(f"{what}: nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError(f"{what}: not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of all that a file holds, in an order of its own.

    Fed, each text in UTF-8 and ended by a zero byte: for every metadata key but
    ``sha256``, sorted, the key and its value; then for every tensor, sorted by name:
    name, dtype, shape with commas between, and the tensor's bytes.
    """
    state = hashlib.sha256()
    for key in sorted(metadata):
        if key != "sha256":
            state.update(f"{key}\0{metadata[key]}\0".encode())
    for name in sorted(tensors):
        array = tensors[name]
        shape = ",".join(map(str, array.shape))
        state.update(f"{name}\0{_NAMES[array.dtype]}\0{shape}\0".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> list:
    """Return a file as its parts: header, then each tensor's array.

    The tensors lie by size of item, then name, so that each is aligned.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {
        "__metadata__": {**metadata, "sha256": digest(tensors, metadata)}
    }
    start = 0
    for name in order:
        array = tensors[name]
        stop = start + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise ValueError(f"the header takes {len(raw)} bytes, over {MAX_HEADER}")
    arrays = [np.ascontiguousarray(tensors[name]) for name in order]
    return [struct.pack("<Q", len(raw)) + raw, *arrays]


def write(path: Path, parts: list) -> None:
    """Write the parts of ``encode`` to a new file beside ``path``, then rename it.

    Whoever reads ``path`` meanwhile, or after a crash, sees the old file or the new
    one, whole.

    Raises:
      OSError: the folder is not there or cannot be written, or the disk is full.
    """
    with storage.atomic(path) as file:
        for part in parts:
            file.write(part.data if isinstance(part, np.ndarray) else part)


def _entry(name: str, found: Any) -> Entry:
    """Read one tensor's line of the header."""
    if not isinstance(found, dict) or set(found) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: the header says more or less than a tensor has")
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if dtype not in DTYPES if isinstance(dtype, str) else True:
        raise ValueError(f"{name}: the dtype is none of {', '.join(DTYPES)}")
    if not _naturals(shape, (0, 1, 2)) or not _naturals(offsets, (2,)):
        raise ValueError(f"{name}: shape or offsets are not whole numbers")
    start, stop = offsets
    if stop - start != DTYPES[dtype].itemsize * math.prod(shape):
        raise ValueError(f"{name}: shape and offsets disagree")
    return Entry(dtype, tuple(shape), start, stop)


def _naturals(found: Any, lengths: tuple[int, ...]) -> bool:
    return (
        isinstance(found, list)
        and len(found) in lengths
        and all(type(n) is int and n >= 0 for n in found)
    )


def _parse(raw: bytes, size: int) -> Header:
    """Read a header; the tensors must fill the file of ``size`` bytes exactly."""
    found = strict_json(raw, "header")
    if not isinstance(found, dict):
        raise ValueError("the header is not a JSON object")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError("the metadata is not a table of texts")
    entries = {name: _entry(name, line) for name, line in found.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != end:
            raise ValueError(f"{name}: does not start where the tensor before ends")
        end = entry.stop
    data = size - 8 - len(raw)
    if end != data:
        raise ValueError(f"{data} bytes of tensors where the header says {end}")
    return Header(entries, metadata, 8 + len(raw))


def read_header(path: Path) -> Header:
    """Read and check a file's header; nothing else of the file is read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise ValueError(f"the file ends after {size} bytes")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"a header of {length} bytes, over {MAX_HEADER}")
        if length > size - 8:
            raise ValueError("the file ends in its header")
        return _parse(file.read(length), size)


def read_tensors(path: Path, header: Header) -> dict[str, np.ndarray]:
    """Read the tensors, as views of one buffer, and check the SHA-256."""
    total = max((entry.stop for entry in header.entries.values()), default=0)
    with open(path, "rb") as file:
        file.seek(header.size)
        data = file.read(total)
    if len(data) != total:
        raise ValueError("the file became shorter while it was read")
    tensors = {}
    for name, entry in header.entries.items():
        view = np.frombuffer(data, np.uint8)[entry.start : entry.stop]
        tensors[name] = view.view(DTYPES[entry.dtype]).reshape(entry.shape)
    if digest(tensors, header.metadata) != header.metadata.get("sha256"):
        raise ValueError("the SHA-256 of its contents is not the one that it names")
    return tensors
