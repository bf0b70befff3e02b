"""A second implementation of the packed format, from its description alone.

``bitflax/FORMAT.md`` is all that it goes by: it shares no code with the
package, so that it can judge what the package writes, and can write what it refuses.
"""

import hashlib
import json
import lzma
import struct
from pathlib import Path

import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1"}


def split(path):
    """Return the header and the data section of a safetensors file."""
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(path, header, data):
    """Write a file of a header and a data section, whatever they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def sha256(header, data):
    """Return the digest that the format asks for."""
    metadata = header["__metadata__"]
    sha = hashlib.sha256()
    for key in sorted(set(metadata) - {"sha256"}):
        sha.update(key.encode() + b"\0" + metadata[key].encode() + b"\0")
    for name in sorted(set(header) - {"__metadata__"}):
        entry = header[name]
        shape = ",".join(str(n) for n in entry["shape"])
        for text in (name, entry["dtype"], shape):
            sha.update(text.encode() + b"\0")
        start, stop = entry["data_offsets"]
        sha.update(data[start:stop])
    return sha.hexdigest()


def arrays(header, data):
    """Return every tensor as an array."""
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            array = np.frombuffer(data[start:stop], DTYPES[entry["dtype"]])
            found[name] = array.reshape(entry["shape"])
    return found


def dense(header, data):
    """Return ``{path: float32 array}`` of every parameter."""
    tensors = arrays(header, data)
    packed = json.loads(header["__metadata__"]["packed"])
    out = {}
    for path, spec in packed.items():
        codes, scale = tensors.pop(f"{path}.codes"), tensors.pop(f"{path}.scale")
        (rows, cols), (_, groups) = spec["shape"], spec["groups"]
        values = np.zeros((rows, cols), np.float32)
        for i in range(rows):
            for j in range(cols):
                meant = _meant(codes[i], spec["bits"], j)
                s = scale[i if len(scale) > 1 else 0, j * groups // cols]
                values[i, j] = np.float32(s) * meant
        out[path] = values
    for name in [name for name in out if name.endswith("_1")]:
        path = name.removesuffix("_1")
        out[path] = out.pop(name) + out.pop(f"{path}_2")
    tensors.pop("tokenizer", None)
    return out | {name: array.astype(np.float32) for name, array in tensors.items()}


def _meant(row, bits, j):
    """Return the integer that a row's field in column ``j`` stands for."""
    if bits == 1.6:
        return int(row[j // 5]) // 3 ** (j % 5) % 3 - 1
    field = int(row[j * bits // 8]) >> j * bits % 8 & (2**bits - 1)
    signed = {4: (field ^ 8) - 8, 8: (field ^ 128) - 128}
    return ({1: 2 * field - 1, 2: field - 1} | signed)[bits]


def tokenizer(header, data):
    """Return the tokenizer's JSON."""
    first, *tokens = (
        lzma.decompress(arrays(header, data)["tokenizer"]).decode().split("\n")
    )
    found = json.loads(first)
    if tokens:
        found["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    return found
