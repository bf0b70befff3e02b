"""A safetensors file that trusts nothing: strict header, checksum, atomic write.

The container is safetensors' (a uint64 length, a JSON header, the tensors' bytes), so
that its own library reads our files; what is stricter here is named in ``FORMAT.md``.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitflax import files

MAX_HEADER = 1 << 20
_BLOCK = 1 << 18
"""Values that are read, checked and widened at once: small beside the file."""
_ALIGNED = 64
"""Bytes at which jax takes an array over as it lies, without a copy."""
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


def shown(name: str) -> str:
    """Return a name as an error may print it: short, and without control characters.

    >>> shown("pooler/bias"), shown("\\x1b[2J")
    ('pooler/bias', "'\\\\x1b[2J'")
    """
    return name if name.isprintable() and 0 < len(name) <= 80 else f"{name[:80]!r}"


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):  # 1e999 is not
        return number
    raise ValueError(f"{text[:80]} is no number")


def strict_json(text: str | bytes, what: str) -> Any:
    """Parse JSON; refuse double keys, NaN, infinities and nesting without end.

    So is half a surrogate pair: whoever prints one fails.

    >>> strict_json('{"a": 1, "a": 2}', "config")
    Traceback (most recent call last):
    ValueError: config: the key 'a' is there twice
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        numbers: Any = {"parse_constant": _finite, "parse_float": _finite}
        found = json.loads(text, object_pairs_hook=files.unique_pairs, **numbers)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(found, ensure_ascii=False).encode()
        return found
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
    state = hashlib.sha256(_metadata(metadata))
    for name in sorted(tensors):
        array = tensors[name]
        state.update(_title(name, _NAMES[array.dtype], array.shape))
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _metadata(found: Mapping[str, str]) -> bytes:
    keys = sorted(set(found) - {"sha256"})
    return "".join(f"{key}\0{found[key]}\0" for key in keys).encode()


def _title(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    return f"{name}\0{dtype}\0{','.join(map(str, shape))}\0".encode()


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
    with files.atomic(path) as file:
        for part in parts:
            file.write(part.data if isinstance(part, np.ndarray) else part)


def _entry(name: str, found: Any) -> Entry:
    """Read one tensor's line of the header."""
    if not isinstance(found, dict) or set(found) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown(name)}: says more or less than a tensor has")
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{shown(name)}: the dtype is none of {', '.join(DTYPES)}")
    if not _naturals(shape, (0, 1, 2)) or not _naturals(offsets, (2,)):
        raise ValueError(f"{shown(name)}: shape or offsets are not whole numbers")
    start, stop = offsets
    if stop - start != DTYPES[dtype].itemsize * math.prod(shape):
        raise ValueError(f"{shown(name)}: shape and offsets disagree")
    return Entry(dtype, tuple(shape), start, stop)


def _naturals(found: Any, lengths: tuple[int, ...]) -> bool:
    return (
        isinstance(found, list)
        and len(found) in lengths
        and all(type(n) is int and 0 <= n < 1 << 63 for n in found)
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
            raise ValueError(f"{shown(name)}: not where the tensor before it ends")
        end = entry.stop
    data = size - 8 - len(raw)
    if end != data:
        raise ValueError(f"{data} bytes of tensors where the header says {end}")
    return Header(entries, metadata, 8 + len(raw))


def read_header(file: BufferedReader) -> Header:
    """Read and check a file's header; nothing else of the file is read."""
    size = os.fstat(file.fileno()).st_size
    raw = file.read(8)
    if len(raw) < 8:
        raise ValueError(f"the file ends after {len(raw)} bytes")
    (length,) = struct.unpack("<Q", raw)
    if length > MAX_HEADER:
        problem = f"another kind of file, or a header of over {MAX_HEADER} bytes"
        raise ValueError(f"no packed student: {problem}")
    raw = file.read(length)
    if len(raw) < length:
        raise ValueError("the file ends in its header")
    return _parse(raw, size)


def read_tensors(file: BufferedReader, header: Header) -> dict[str, np.ndarray]:
    """Read the tensors of the file whose header that is, and check the SHA-256.

    Returns:
      Arrays of bytes (U8) and of float32 (F16, F32), each in memory of its own that
      jax can take over without a copy: altogether the file's size, or twice that of
      what is float16.
    """
    state = hashlib.sha256(_metadata(header.metadata))
    tensors = {}
    for name in sorted(header.entries):
        entry = header.entries[name]
        state.update(_title(name, entry.dtype, entry.shape))
        file.seek(header.size + entry.start)
        tensors[name] = _tensor(file, entry, state)
    if state.hexdigest() != header.metadata.get("sha256"):
        raise ValueError("the SHA-256 of its contents is not the one that it names")
    return tensors


def _tensor(file: BufferedReader, entry: Entry, state: Any) -> np.ndarray:
    """Read one tensor block by block, and feed its bytes to the checksum."""
    stored = DTYPES[entry.dtype]
    values = aligned(
        math.prod(entry.shape), np.dtype("u1" if entry.dtype == "U8" else "f4")
    )
    for block in blocks(values):
        raw = file.read(block.size * stored.itemsize)
        if len(raw) < block.size * stored.itemsize:
            raise ValueError("the file became shorter while it was read")
        state.update(raw)
        block[:] = np.frombuffer(raw, stored)
    return values.reshape(entry.shape)


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """Return an empty array in memory that jax can take over without a copy."""
    raw = np.empty(size * dtype.itemsize + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size * dtype.itemsize].view(dtype)


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array in short runs along its first axis, as views.

    What is computed of a run takes little memory beside the array.

    >>> [block.shape for block in blocks(np.zeros((3, 200_000)))]
    [(1, 200000), (1, 200000), (1, 200000)]
    """
    rows = max(1, _BLOCK // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
