"""Weights as parts of an ONNX graph: stored as the few bits they have.

Codes of 1 and 2 bits stay packed in the graph and are unpacked by looking each byte up
in a table of its fields. Of what does not depend on the inputs a runtime does that
once, when it loads the model; of a table's rows, after they are looked up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bitflax.inference import onnx_activations
from bitflax.inference.onnx_graph import FLOAT, INT32, Graph, Value
from bitflax.model import FIELDS, Packed, Split
from bitflax.packed import fields_to_bytes, fields_to_values, on_host, read_off_codes


class Integers(NamedTuple):
    """A matrix [rows, cols] as integers -1, 0 and 1 and the scale of each column."""

    fields: np.ndarray
    scale: np.ndarray


def read(leaf: Any) -> Any:
    """Return a matrix of 1- or 2-bit values as ``Packed``, another leaf as it is."""
    if isinstance(leaf, Packed | Split) or np.ndim(leaf) != 2:
        return leaf
    return read_off_codes(np.asarray(leaf, np.float32)) or leaf


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
    fields = fields_to_values(np.asarray(leaf.codes), leaf.bits, cols, np.int8)
    scale = np.asarray(leaf.scale, np.float32)[0]
    return [
        Integers(
            fields, scale if len(scale) == 1 else np.repeat(scale, cols // len(scale))
        )
    ]


def stored(graph: Graph, fields: np.ndarray) -> str:
    """Store a matrix of -1, 0 and 1 in the bits that it takes; return it as int8."""
    bits = 1 if (np.abs(fields) == 1).all() else 2
    _, step, offset = FIELDS[bits]
    packed = fields_to_bytes((fields - offset) // step, bits)
    return _unpacked(graph, packed, bits, fields.shape[1])


def dense(graph: Graph, leaf: Any) -> Value:
    """Return the float32 array that a leaf stands for, stored as the leaf is."""
    if isinstance(leaf, Split):
        return graph.op("Add", dense(graph, leaf.a), dense(graph, leaf.b))
    if not isinstance(leaf, Packed) or len(leaf.shape) != 2:
        return np.asarray(on_host(leaf), np.float32)
    return _values(graph, leaf, _bytes(leaf), np.asarray(leaf.scale, np.float32))


def rows(graph: Graph, leaf: Any, ids: str) -> str:
    """Return the rows ``ids`` [n] of a table [rows, width]: float32 [n, width]."""
    if isinstance(leaf, Split):
        return graph.op("Add", rows(graph, leaf.a, ids), rows(graph, leaf.b, ids))
    if not isinstance(leaf, Packed):
        return graph.op("Gather", np.asarray(on_host(leaf), np.float32), ids)
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
    per_byte = FIELDS[bits].per_byte
    fields = fields_to_values(every, bits, per_byte, np.int8)
    index = graph.op("Cast", codes, to=INT32)
    found = graph.op("Reshape", graph.op("Gather", fields, index), np.array([0, -1]))
    if cols % per_byte == 0:
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


def int8(graph: Graph, x: onnx_activations.Codes, parts: list[Integers]) -> str:
    """Return float32 [rows, out] by ``MatMulInteger`` of uint8 and int8.

    One scale for all rows takes the form that ONNX Runtime fuses with the bias into one
    operator. That operator knows no scales of rows, but ``DequantizeLinear`` does.
    Weights of -1, 0 and 1 cannot overflow the 16 bits in which processors without VNNI
    add two products of uint8 and int8.

    Args:
      graph: what grows.
      x: integers [rows, in].
      parts: one weight matrix, or two, whose products are added.
    """

    def product(part: Integers) -> str:
        weights = stored(graph, part.fields)
        y = graph.op("MatMulInteger", x.integers, weights, np.uint8(x.origin))
        if not x.by_row:
            scale = graph.op("Mul", x.scale, part.scale)
            return graph.op("Mul", graph.op("Cast", y, to=FLOAT), scale)
        scale: Value = x.scale
        if len(part.scale) == 1:
            scale = graph.op("Mul", scale, part.scale)
        y = graph.op("DequantizeLinear", y, scale, axis=0)
        return y if len(part.scale) == 1 else graph.op("Mul", y, part.scale)

    return _shifted(graph, _sum(graph, product, parts), x, parts)


def _sum(
    graph: Graph, product: Callable[[Integers], str], parts: list[Integers]
) -> str:
    first, *others = map(product, parts)
    for other in others:
        first = graph.op("Add", first, other)
    return first


def _shifted(
    graph: Graph, y: str, x: onnx_activations.Codes, parts: list[Integers]
) -> str:
    """Add what the integers' zero, a number or one a row, adds to the product."""
    if x.zero is None:
        return y
    sums = sum(part.fields.sum(0, dtype=np.int64) * part.scale for part in parts)
    shift = graph.op("Mul", x.zero, np.asarray(sums, np.float32)[None])
    return graph.op("Add", y, shift)
