"""Weights as parts of an ONNX graph: stored as the few bits they have.

Codes of 1 and 2 bits stay packed in the graph; each byte is unpacked by a look-up in a
table of its fields. A runtime unpacks matrices once, as it loads the model, since they
do not depend on the inputs; rows of an embedding are unpacked after they are gathered.
"""

import functools
from typing import Any

import numpy as np

from bitflax.inference import onnx_activations
from bitflax.inference.onnx_graph import FLOAT, INT32, Graph, Value
from bitflax.model import FIELDS, Packed, Split
from bitflax.packed import fields_to_values, on_host, read_off_codes


def read(leaf: Any) -> Any:
    """Return a matrix of 1- or 2-bit values as ``Packed``, another leaf as it is."""
    if isinstance(leaf, Packed | Split) or np.ndim(leaf) != 2:
        return leaf
    return read_off_codes(np.asarray(leaf, np.float32)) or leaf


def integers(leaf: Any) -> list[Packed]:
    """Return the matrices of 1 or 2 bits whose sum is this leaf: one, or a split's two.

    The list is empty for a dense array, for 8 bits, and where each row has its own
    scale: a product sums over rows, so that such a scale cannot be applied afterwards.

    >>> leaf = read(np.array([[0.5, -0.5], [-0.5, 0.0]], np.float32))
    >>> [part.bits for part in integers(leaf)]
    [2]
    """
    if isinstance(leaf, Split):
        halves = [integers(read(half)) for half in (leaf.a, leaf.b)]
        return halves[0] + halves[1] if all(halves) else []
    fits = isinstance(leaf, Packed) and leaf.bits < 8 and len(leaf.scale) == 1
    return [leaf] if fits else []


def dense(graph: Graph, leaf: Any) -> Value:
    """Return the float32 array that a leaf stands for, stored as the leaf is."""
    if isinstance(leaf, Split):
        return graph.op("Add", dense(graph, leaf.a), dense(graph, leaf.b))
    if not isinstance(leaf, Packed) or len(leaf.shape) != 2:
        return np.asarray(on_host(leaf), np.float32)
    return _values(graph, leaf, None, np.asarray(leaf.scale, np.float32))


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


def _unpacked(graph: Graph, leaf: Packed, codes: Value = None) -> Value:
    """Unpack codes [n, bytes], by default the leaf's own, to int8 [n, cols]."""
    cols, bits = leaf.shape[1], leaf.bits
    codes = _bytes(leaf) if codes is None else codes
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
    x = graph.op("Cast", _unpacked(graph, leaf, codes), to=FLOAT)
    if groups in (1, cols):
        return graph.op("Mul", x, scale)
    runs = graph.op("Reshape", x, np.array([0, groups, -1]))
    runs = graph.op("Mul", runs, graph.op("Unsqueeze", scale, np.array([2])))
    return graph.op("Reshape", runs, np.array([0, -1]))


def int8(graph: Graph, x: onnx_activations.Codes, parts: list[Packed]) -> str:
    """Return float32 [rows, out] by ``MatMulInteger`` of uint8 and int8.

    One scale for all rows takes the form that ONNX Runtime fuses with the bias into one
    operator. That operator knows no scales of rows, but ``DequantizeLinear`` does.
    Weights of -1, 0 and 1 cannot overflow the 16 bits in which processors without VNNI
    add two products of uint8 and int8.

    Args:
      graph: the graph that it is added to.
      x: integers [rows, in]; their zero point, one in all or one a row, adds to the
        product.
      parts: one weight matrix, or two, whose products are added.
    """
    products, sums = [], np.float32(0)
    for part in parts:
        _, fields, (scale,), _ = on_host(part, np.int8)
        weights = _unpacked(graph, part)
        y = graph.op("MatMulInteger", x.integers, weights, np.uint8(x.origin))
        if not x.by_row:
            both = graph.op("Mul", x.scale, scale)
            y = graph.op("Mul", graph.op("Cast", y, to=FLOAT), both)
        elif len(scale) == 1:
            both = graph.op("Mul", x.scale, scale)
            y = graph.op("DequantizeLinear", y, both, axis=0)
        else:
            y = graph.op("DequantizeLinear", y, x.scale, axis=0)
            y = graph.op("Mul", y, scale)
        products.append(y)
        sums = sums + fields.sum(0, dtype=np.int64) * scale
    y = functools.reduce(functools.partial(graph.op, "Add"), products)
    if x.zero is None:
        return y
    shift = graph.op("Mul", x.zero, np.asarray(sums, np.float32)[None])
    return graph.op("Add", y, shift)
