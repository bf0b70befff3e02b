"""Packed files taken apart, to be forged: a right checksum, whatever they hold."""

import contextlib
import json
import struct

from tests.helpers import packedfiles

UNFIT = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What a change raises that an earlier one left nothing to work on for."""

ODD = [None, True, False, 0, -1, 1, 2, 3, 1.6, 2.0, 0.5, -0.0, 1e-300, 1e38, 1 << 31]
ODD += [1 << 63, 10**18, 10**30, 10**400, "", "a", "8", "\ud800", "\x1b[2J", "x" * 5000]
ODD += [[], [1], [None], [-1, -1], {}, {"a": 1}, [[]], float("nan"), "relu", "gelu"]


class Forgery:
    """A packed file taken apart, to be changed and put together with a right checksum.

    Attributes:
      meta: the metadata.
      tensors: ``{name: [dtype, shape, bytes]}``.
      late: changes of the header's entries, made after the tensors have their places.
      text: changes of the header's JSON, made last of all.
    """

    def __init__(self, raw: bytes):
        (length,) = struct.unpack("<Q", raw[:8])
        header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        self.meta = header.pop("__metadata__")
        self.tensors = {
            name: [e["dtype"], e["shape"], data[slice(*e["data_offsets"])]]
            for name, e in header.items()
        }
        self.late, self.text = [], []

    def bytes(self) -> bytes:
        """Return the file."""
        header, data = {"__metadata__": self.meta}, b""
        for name, (dtype, shape, raw) in self.tensors.items():
            offsets = [len(data), len(data) + len(raw)]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            data += raw
        for change in self.late:
            change(header)
        # What cannot be summed has no right checksum.
        with contextlib.suppress(*UNFIT):
            self.meta["sha256"] = packedfiles.sha256(header, data)
        text = json.dumps(header)
        for change in self.text:
            text = change(text)
        raw = text.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw)) + raw + data


def nodes(tree) -> list:
    """Return (container, key) of everything in a JSON tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree))
    found = []
    for key in keys:
        found.append((tree, key))
        if isinstance(tree[key], dict | list):
            found += nodes(tree[key])
    return found


def pick(rng, choices):
    """Return one of a list, as it is: numpy would make arrays of some."""
    return choices[int(rng.integers(len(choices)))]


def twist(rng, tree) -> None:
    """Replace, drop, double or exchange a random node of a JSON tree."""
    found = nodes(tree)
    if not found:
        return
    (at, key), (other, name) = pick(rng, found), pick(rng, found)
    kind = rng.integers(4)
    if kind == 0:
        at[key] = pick(rng, ODD)
    elif kind == 1:
        del at[key]
    elif kind == 2 and isinstance(at, dict):
        at[pick(rng, ["", "more", "a" * 300, "\x1b[2J", f"{key} "])] = at[key]
    elif kind == 2:
        at.insert(0, at[key])
    elif not isinstance(other[name], dict | list):
        at[key] = other[name]
