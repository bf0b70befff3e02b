"""Weights as parts of an ONNX graph: stored as the few bits they have.

Codes of 1 and 2 bits stay packed in the graph and are unpacked by looking each byte up
in a table of its fields. Of what does not depend on the inputs a runtime does that
once, when it loads the model; of a table's rows, after they are looked up.
"""

from typing import Any, NamedTuple

import numpy as np

from bitflax.inference import unpacking
from bitflax.inference.onnx_graph import FLOAT, INT32, Graph, Value
from bitflax.model.leaves import Packed, Split
from bitflax.packed import bitfields, packing


class Integers(NamedTuple):
    """A matrix [rows, cols] as integers -1, 0 and 1 and the scale of each column."""

    fields: np.ndarray
    scale: np.ndarray


def read(leaf: Any) -> Any:
    """Return a matrix of 1- or 2-bit values as ``Packed``, another leaf as it is."""
    if isinstance(leaf, Packed | Split) or np.ndim(leaf) != 2:
        return leaf
    return packing.read_off(np.asarray(leaf, np.float32)) or leaf


def integers(leaf: Any) -> list[Integers]:
    """Return the 1- or 2-bit matrices whose sum a leaf is.

    One ``Packed`` is one, a ``Split`` is two. There are none of an array, of 8 bits, or
    where rows have scales of their own, which cannot be taken out of the sum over them.

    >>> found = integers(read(np.array([[0.5, -0.5], [-0.5, 0.0]], np.float32)))
    >>> found[0].fields.tolist(), found[0].scale
    ([[1, -1], [-1, 0]], array([0.5], dtype=float32))
    """
    if isinstance(leaf, Split):
        halves = [integers(read(half)) for half in (leaf.a, leaf.b)]
        return halves[0] + halves[1] if all(halves) else []
    if not isinstance(leaf, Packed) or leaf.bits == 8 or len(leaf.scale) != 1:
        return []
    cols = leaf.shape[1]
    fields = bitfields.to_values(np.asarray(leaf.codes), leaf.bits, cols, np.int8)
    scale = np.asarray(leaf.scale, np.float32)[0]
    return [
        Integers(
            fields, scale if len(scale) == 1 else np.repeat(scale, cols // len(scale))
        )
    ]


def stored(graph: Graph, fields: np.ndarray) -> str:
    """Store a matrix of -1, 0 and 1 in the bits that it takes; return it as int8."""
    bits = 1 if (np.abs(fields) == 1).all() else 2
    packed = bitfields.to_bytes((fields + 1) // (3 - bits), bits)
    return _unpacked(graph, packed, bits, fields.shape[1])


def dense(graph: Graph, leaf: Any) -> Value:
    """Return the float32 array that a leaf stands for, stored as the leaf is."""
    if isinstance(leaf, Split):
        return graph.op("Add", dense(graph, leaf.a), dense(graph, leaf.b))
    if not isinstance(leaf, Packed) or len(leaf.shape) != 2:
        return np.asarray(unpacking.on_host(leaf), np.float32)
    return _values(graph, leaf, _bytes(leaf), np.asarray(leaf.scale, np.float32))


def rows(graph: Graph, leaf: Any, ids: str) -> str:
    """Return the rows ``ids`` [n] of a table [rows, width]: float32 [n, width]."""
    if isinstance(leaf, Split):
        return graph.op("Add", rows(graph, leaf.a, ids), rows(graph, leaf.b, ids))
    if not isinstance(leaf, Packed):
        return graph.op("Gather", np.asarray(unpacking.on_host(leaf), np.float32), ids)
    scale: Value = np.asarray(leaf.scale, np.float32)
    if len(scale) > 1:
        scale = graph.op("Gather", scale, ids)
    return _values(graph, leaf, graph.op("Gather", _bytes(leaf), ids), scale)


def _bytes(leaf: Packed) -> np.ndarray:
    codes = np.asarray(leaf.codes)
    return codes.view(np.int8) if leaf.bits == 8 else codes


def _unpacked(graph: Graph, codes: Value, bits: int, cols: int) -> Value:
    """Return int8 [n, cols] of codes [n, bytes]."""
    if bits == 8:
        return codes
    every = np.arange(256, dtype=np.uint8)[:, None]
    fields = bitfields.to_values(every, bits, 8 // bits, np.int8)
    index = graph.op("Cast", codes, to=INT32)
    found = graph.op("Reshape", graph.op("Gather", fields, index), np.array([0, -1]))
    if cols * bits % 8 == 0:
        return found
    return graph.op("Slice", found, np.array([0]), np.array([cols]), np.array([1]))


def _values(graph: Graph, leaf: Packed, codes: Value, scale: Value) -> str:
    """Return float32 [n, cols] of codes [n, bytes] and scales [1 or n, groups]."""
    cols, groups = leaf.shape[1], leaf.scale.shape[1]
    x = graph.op("Cast", _unpacked(graph, codes, leaf.bits, cols), to=FLOAT)
    if groups in (1, cols):
        return graph.op("Mul", x, scale)
    runs = graph.op("Reshape", x, np.array([0, groups, -1]))
    runs = graph.op("Mul", runs, graph.op("Unsqueeze", scale, np.array([2])))
    return graph.op("Reshape", runs, np.array([0, -1]))
