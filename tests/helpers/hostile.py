"""Damaged and hostile packed files, made by chance: what a strict reader is tried on.

``damaged`` breaks bytes wherever they lie; ``forged`` knows the format, changes what
it says or holds, and puts the checksum right again.
"""

import contextlib
import json

import numpy as np

from tests.helpers import forgedparts
from tests.helpers.forgery import ODD, UNFIT, Forgery, pick, twist


def damaged(rng: np.random.Generator, raw: bytes) -> bytes:
    """Flip bits, cut, insert, drop, double, overwrite or swap runs: one to three times."""
    data = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        # Half of all damage hits the header, where a reader has most to believe.
        end = len(data) if rng.random() < 0.5 else min(len(data), 5000)
        if not end:
            break
        at, size = int(rng.integers(end)), int(rng.integers(1, 40))
        kind = rng.integers(8)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = rng.bytes(size)
        elif kind == 4:
            data[at : at + size] = rng.bytes(size)
        elif kind == 5:
            data[at:at] = data[at : at + size]
        elif kind == 6:
            other = int(rng.integers(end))
            a, b = data[at : at + size], data[other : other + size]
            data[at : at + size], data[other : other + size] = b, a
        else:
            data[at : at + size] = bytes([int(rng.choice([0, 255]))]) * size
    return bytes(data)


def meta_json(rng, file) -> None:
    """Twist the JSON of a metadata text, once to three times."""
    key = pick(rng, ["config", "config", "act", "act", "packed", "extras"])
    tree = json.loads(file.meta[key])
    for _ in range(rng.integers(1, 4)):
        twist(rng, tree)
    file.meta[key] = json.dumps(tree)


def meta_text(rng, file) -> None:
    """Put odd JSON in the place of a metadata text, or in the middle of it."""
    key = pick(rng, list(file.meta))
    size = int(rng.integers(1, 100_000))
    odd = ["NaN", "1e999", "9" * 5000, '{"a":1,"a":2}', "[" * size, '{"a":' * size]
    odd += ["[" + "[]," * (size // 3) + "[]]", '"\\ud800"', "", "null", "1", '"x"']
    odd += ["\0", "[" + "{}," * (size // 3) + "{}]", " " * size, '"' + "\u2603" * size]
    text = file.meta[key]
    at = int(rng.integers(len(text) + 1))
    new = pick(rng, odd)
    file.meta[key] = new if rng.random() < 0.5 else text[:at] + new + text[at:]


def meta_keys(rng, file) -> None:
    """Add, drop or retype a key of the metadata."""
    key = pick(rng, list(file.meta))
    kind = rng.integers(3)
    if kind == 0:
        file.meta[pick(rng, ["more", "", "sha256 ", "x" * 1000])] = "1"
    elif kind == 1:
        del file.meta[key]
    else:
        file.meta[key] = pick(rng, ODD)


def entry(rng, file) -> None:
    """Give a tensor another dtype, shape or place than its bytes have."""
    name = pick(rng, list(file.tensors))
    key = pick(rng, ["dtype", "shape", "data_offsets"])
    shape = file.tensors[name][1]
    odd = {
        "dtype": ["U8", "F16", "F32", "BF16", "I8", "", "F64", "BOOL"],
        "shape": [shape[::-1], [*shape, 1], [1, *shape], [0], [1 << 62] * 2, [-1]],
        "data_offsets": [[0, 8], [8, 0], [-8, 0], [1 << 62, 1 << 63], [0], [0, 0]],
    }[key]

    def change(header):
        line = header.get(name, {})
        line[key] = pick(rng, odd + ODD) if rng.random() < 0.2 else pick(rng, odd)
        if rng.random() < 0.2:
            line[pick(rng, ["more", "strides"])] = 1

    file.late.append(change)


def places(rng, file) -> None:
    """Let tensors overlap, exchange their places, or leave a gap."""

    def change(header):
        names = [name for name in header if name != "__metadata__"]
        a, b = header[pick(rng, names)], header[pick(rng, names)]
        kind = rng.integers(3)
        if kind == 0:
            a["data_offsets"] = b["data_offsets"]
        elif kind == 1:
            a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
        else:
            a["data_offsets"] = [n + int(rng.integers(1, 9)) for n in a["data_offsets"]]

    file.late.append(change)


def names(rng, file) -> None:
    """Add, drop, rename or double a tensor."""
    name = pick(rng, list(file.tensors))
    kind = rng.integers(4)
    odd = [
        f"{name} ",
        "../../etc/passwd",
        "x" * 100_000,
        "",
        "\x1b[2J",
        f"{name}.codes",
    ]
    odd += [f"{name}_1", "encoder/layer_1/ffn/in/bias", "projection/kernel", "\ud800"]
    if kind == 0:
        del file.tensors[name]
    elif kind == 1:
        file.tensors[pick(rng, odd)] = file.tensors.pop(name)
    elif kind == 2:
        file.tensors[pick(rng, odd)] = ["U8", [0], b""]
    else:
        line = json.dumps({name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})
        file.text.append(lambda text: f"{text[:-1]},{line[1:]}")


def long_header(rng, file) -> None:
    """Fill the header up to a megabyte, or a little over it, with one thing."""
    size = int(rng.choice([900_000, 1_030_000, 1 << 20]))
    fill = [" " * size, "[" + "[]," * (size // 3) + "[]]", "{" * size, "[" * size]
    fill += ['"' + "\u2603" * (size // 3) + '"', "[" + "1e9," * (size // 4) + "1]"]
    fill += ["{" + ",".join(f'"{i}":0' for i in range(size // 10)) + "}", "9" * size]
    new, key = pick(rng, fill), pick(rng, ["extras", "act", "config", "packed"])
    if rng.random() < 0.5:
        file.meta[key] = new
    else:
        file.text.append(lambda text: f'{text[:-1]},"x":{new}}}')


CHANGES = [meta_json] * 4 + [meta_text, meta_keys, entry, entry, places, names]
CHANGES += [long_header, *forgedparts.CHANGES]


def forged(rng: np.random.Generator, raw: bytes) -> tuple[str, bytes]:
    """Return a hostile file with a right checksum, and what was done to it."""
    file, done = Forgery(raw), []
    for _ in range(1 if rng.random() < 0.8 else 2):
        change = pick(rng, CHANGES)
        # The second may not find what it wants to change, after the first.
        with contextlib.suppress(*UNFIT):
            change(rng, file)
        done.append(change.__name__)
        xz = file.tensors.get("tokenizer")
        if xz:
            xz[1] = [len(xz[2])]
    return "+".join(done), file.bytes()
