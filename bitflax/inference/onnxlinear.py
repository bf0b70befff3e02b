"""Products with 1- and 2-bit matrices in ONNX: ``MatMulInteger`` or ``MatMulNBits``.

A product is that of integers, activations [rows, in] and weights [in, out] of -1, 0 and
1, times the scale of the row and that of the column. Sums of integers are exact, so
that both forms give what training computed, but for the rounding of floats around.
"""

from collections.abc import Callable

import numpy as np

from bitflax.inference import onnx_activations, onnx_matrices
from bitflax.inference.onnx_graph import CONTRIB, FLOAT, Graph, Value
from bitflax.inference.onnx_matrices import Integers
from bitflax.packed import bitfields

BLOCK = 128
"""Weights that share a scale in ``MatMulNBits``; ONNX Runtime 1.32 has products of
int8 for 32, 64 and 128, and unpacks all weights to floats where there are more."""


_TOP = 127


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
        weights = onnx_matrices.stored(graph, part.fields)
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


def two_bits(graph: Graph, x: onnx_activations.Codes, parts: list[Integers]) -> str:
    """Return float32 [rows, out] by ``MatMulNBits`` of integers, without its rounding.

    At accuracy level 4 the operator rounds activations to int8 by itself, one scale a
    row and block: that of the largest value over 127. Here each block holds 127
    integers and a 127 that meets a weight of 0, so that the scale is 1 and nothing is
    rounded again. That takes an eighth more time, and moves 1 of 1,952 labels of the
    quickstart's student, where rounding twice moves 2 and the operator's alone 4.

    Args:
      graph: what grows.
      x: integers [rows, in], at most 127 in size less their origin.
      parts: one weight matrix, or two, whose products are added.
    """
    size = parts[0].fields.shape[0]
    blocks = -(-size // _TOP)
    short = blocks * _TOP - size
    q = graph.op("Cast", x.integers, to=FLOAT)
    if x.origin:
        q = graph.op("Sub", q, np.float32(x.origin))
    q = graph.op("Pad", q, np.array([0, 0, 0, short]), np.float32(0))
    q = graph.op("Reshape", q, np.array([-1, blocks, _TOP]))
    q = graph.op("Pad", q, np.array([0, 0, 0, 0, 0, 1]), np.float32(_TOP))
    q = graph.op("Reshape", q, np.array([-1, blocks * BLOCK]))

    def product(part: Integers) -> str:
        fields = np.pad(part.fields, ((0, short), (0, 0))).reshape(blocks, _TOP, -1)
        fields = np.pad(fields, ((0, 0), (0, 1), (0, 0))).reshape(blocks * BLOCK, -1)
        return _n_bits(graph, q, Integers(fields, part.scale))

    scale = x.scale
    if x.by_row:
        scale = graph.op("Unsqueeze", scale, np.array([1]))
    y = graph.op("Mul", _sum(graph, product, parts), scale)
    return _shifted(graph, y, x, parts)


def two_bits_rounded(graph: Graph, x: str, parts: list[Integers]) -> str:
    """Return float32 [rows, out] by ``MatMulNBits``, which rounds ``x`` to int8.

    Args:
      graph: what grows.
      x: float32 [rows, in].
      parts: one weight matrix, or two, whose products are added.
    """
    return _sum(graph, lambda part: _n_bits(graph, x, part), parts)


def _n_bits(graph: Graph, x: str, part: Integers) -> str:
    """Add ``MatMulNBits``, whose code ``c`` of 2 bits stands for ``c - 2``."""
    size, out = part.fields.shape
    blocks = -(-size // BLOCK)
    codes = np.pad(part.fields + 2, ((0, blocks * BLOCK - size), (0, 0)))
    packed = bitfields.to_bytes(codes.T, 2).reshape(out, blocks, BLOCK // 4)
    scale = np.broadcast_to(part.scale[:, None], (out, blocks))
    return graph.op(
        "MatMulNBits",
        x,
        packed,
        scale,
        domain=CONTRIB,
        K=size,
        N=out,
        bits=2,
        block_size=BLOCK,
        accuracy_level=4,
    )


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
