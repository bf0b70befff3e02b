"""Matrix products of 1- and 2-bit weights in ONNX: as integers, or by ``MatMulNBits``.

A product is that of integers ``q`` [rows, in] and ``w`` [in, out] in -1, 0 and 1, times
the scale of the row and that of the column. Sums of integers are exact, so that both
forms give what training computed, but for the rounding of floats around them.
"""

import numpy as np

from bitflax import onnxact, onnxweights
from bitflax.onnxgraph import FLOAT, Graph, Value
from bitflax.onnxweights import Integers

BLOCK = 128


def int8(graph: Graph, x: onnxact.Codes, parts: list[Integers]) -> str:
    """Return float32 [rows, out]: ``MatMulInteger`` of int8 weights, scaled.

    One scale for all rows takes the form that ONNX Runtime fuses into one operator with
    the bias. One a row is that of ``DequantizeLinear``, whose axis may be the rows; the
    fused operator knows none. Weights of -1, 0 and 1 cannot overflow the 16 bits in
    which processors without VNNI add two products of uint8 and int8.

    Args:
      graph: what grows.
      x: integers [rows, in].
      parts: one weight matrix, or two, whose products are added.
    """
    y = None
    for fields, scale in parts:
        weights = onnxweights.stored(graph, fields)
        origin = np.uint8(x.origin)
        product = graph.op("MatMulInteger", x.integers, weights, origin)
        product = _scaled(graph, product, x, scale)
        y = product if y is None else graph.op("Add", y, product)
    assert y is not None
    if x.zero is None:
        return y
    sums = sum(part.fields.sum(0, dtype=np.int64) * part.scale for part in parts)
    shift = graph.op("Mul", x.zero, np.asarray(sums, np.float32)[None])
    return graph.op("Add", y, shift)


def _scaled(graph: Graph, y: str, x: onnxact.Codes, scale: np.ndarray) -> str:
    """Return int32 [rows, out] times the scales of rows and columns."""
    if not x.by_row:
        both = graph.op("Mul", x.scale, scale)
        return graph.op("Mul", graph.op("Cast", y, to=FLOAT), both)
    by_row: Value = x.scale
    if len(scale) == 1:
        by_row = graph.op("Mul", by_row, scale)
    y = graph.op("DequantizeLinear", y, by_row, axis=0)
    return y if len(scale) == 1 else graph.op("Mul", y, scale)
