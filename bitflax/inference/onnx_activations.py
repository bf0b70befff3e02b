"""Activation quantizers as parts of an ONNX graph, as values or as integers.

The same arithmetic as ``bitflax.quantization``'s; rounding is half to even on both
sides. Each quantizer is a grid: what is rounded, the step, the lowest and the highest
multiple of it, and what is added again.
"""

from typing import Any, NamedTuple

import numpy as np

from bitflax.errors import ConfigError
from bitflax.inference.onnx_graph import Graph, Value
from bitflax.quantization import (
    LEAST_STEP,
    Axis,
    asymmetric,
    clipped,
    elastic,
    lsq,
    symmetric,
)

_LEAST = np.float32(1e-30)
"""In place of a step of 0, which only zeros have."""
_FLAT = np.array([-1])
_LAST = (-1, (-1,))


class _Grid(NamedTuple):
    """``clip(round(x / scale), low, top) * scale + zero``."""

    x: str
    scale: Value
    low: int
    top: int
    zero: str | None = None


class Codes(NamedTuple):
    """uint8 [rows, n] that stand for ``(integers - origin) * scale + zero``.

    ``scale`` is a number or [1], or [rows] where ``by_row``; ``zero`` is None, or it
    broadcasts against [rows, 1].
    """

    integers: str
    origin: int
    scale: Value
    zero: str | None
    by_row: bool


def values(
    graph: Graph, site: str, quantizer: Any, x: str, p: Any = None, *, rank: int
) -> str:
    """Add a quantizer and return the quantised values, of the shape of ``x``.

    Args:
      graph: what grows.
      site: where the quantizer stands, for errors.
      quantizer: one of bitflax's activation quantizers.
      x: what is quantised.
      p: what the quantizer learned, if it learns.
      rank: the number of axes of ``x``.

    Raises:
      ConfigError: the quantizer is not bitflax's own.
    """
    inner = _inner(quantizer)
    if not getattr(inner, "groups", None):
        axis = getattr(inner, "axis", None)
        return _rounded(graph, _grid(graph, site, quantizer, x, p, axis))
    kept = [0] * (rank - 1)
    cut = graph.op("Reshape", x, np.array([*kept, inner.groups, -1]))
    shared = (*range(rank - 1), rank)
    y = _rounded(graph, _grid(graph, site, quantizer, cut, p, shared))
    return graph.op("Reshape", y, np.array([*kept, -1]))


def has_codes(quantizer: Any) -> bool:
    """Whether 8 bits with one scale a token, or one in all, can say its values.

    >>> [has_codes(q) for q in (symmetric(8), symmetric(8, groups=4), lsq(16), None)]
    [True, False, False, False]
    """
    inner = _inner(quantizer)
    if not isinstance(inner, symmetric | asymmetric | lsq | elastic) or inner.bits > 8:
        return False
    return not getattr(inner, "groups", None) and is_flat(quantizer)


def is_flat(quantizer: Any) -> bool:
    """Whether all that it has to know of axes is which one is the last."""
    inner = _inner(quantizer)
    grouped = bool(getattr(inner, "groups", None))
    return grouped or getattr(inner, "axis", None) in (None, *_LAST)


def is_by_token(quantizer: Any) -> bool:
    """Whether a token's values depend on no other token.

    >>> [is_by_token(q) for q in (None, symmetric(8), symmetric(8, axis=None), lsq(4))]
    [True, True, False, True]
    """
    inner = _inner(quantizer)
    if isinstance(inner, symmetric | asymmetric):
        return not inner.groups and inner.axis in _LAST
    if isinstance(inner, lsq):
        return inner.signed  # the other kind takes off the smallest value of all
    return inner is None or isinstance(inner, elastic)


def codes(graph: Graph, site: str, quantizer: Any, x: str, p: Any = None) -> Codes:
    """Add a quantizer that ``has_codes`` and return its integers.

    Args:
      graph: what grows.
      site: where the quantizer stands, for errors.
      quantizer: one of bitflax's activation quantizers.
      x: a matrix [rows, n].
      p: what the quantizer learned, if it learns.

    Raises:
      ConfigError: the quantizer is not bitflax's own.
    """
    axis = getattr(_inner(quantizer), "axis", None)
    grid = _grid(graph, site, quantizer, x, p, axis)
    # ONNX Runtime multiplies uint8 by int8 thirty times faster than int8 by int8.
    middle = 128 if grid.low < 0 else 0
    low, top = np.uint8(grid.low + middle), np.uint8(grid.top + middle)
    if _is_sign(grid):
        below = graph.op("Less", grid.x, np.float32(0))
        signs = graph.op("Where", below, low, top)
        return Codes(signs, middle, grid.scale, None, False)
    scale, origin = grid.scale, np.uint8(middle)
    if isinstance(scale, str):
        scale = graph.op("Reshape", graph.op("Max", scale, _LEAST), _FLAT)
        origin = graph.full(graph.op("Shape", scale), origin)
    integers = graph.op("QuantizeLinear", grid.x, scale, origin, axis=0)
    if (low, top) != (0, 255):  # else the type itself is the limit
        integers = graph.op("Clip", integers, low, top)
    return Codes(integers, middle, scale, grid.zero, axis is not None)


def _inner(quantizer: Any) -> Any:
    return quantizer.quantizer if isinstance(quantizer, clipped) else quantizer


def _is_sign(grid: _Grid) -> bool:
    """Whether the levels are -1 and 1, without 0."""
    return (grid.low, grid.top) == (-1, 1)


def _rounded(graph: Graph, grid: _Grid) -> str:
    if _is_sign(grid):
        below = graph.op("Less", grid.x, np.float32(0))
        return graph.op("Where", below, -grid.scale, grid.scale)
    scale = grid.scale
    safe = graph.op("Max", scale, _LEAST) if isinstance(scale, str) else scale
    multiples = graph.op("Round", graph.op("Div", grid.x, safe))
    low, top = np.float32(grid.low), np.float32(grid.top)
    y = graph.op("Mul", graph.op("Clip", multiples, low, top), scale)
    return y if grid.zero is None else graph.op("Add", y, grid.zero)


def _grid(graph: Graph, site: str, quantizer: Any, x: str, p: Any, axis: Axis) -> _Grid:
    """Return the grid of a quantizer whose scale the axes ``axis`` share."""
    if isinstance(quantizer, clipped):
        ends = np.asarray(p, np.float32)
        x = graph.op("Clip", x, ends[0], ends[1])
        return _grid(graph, site, quantizer.quantizer, x, None, axis)
    if isinstance(quantizer, symmetric):
        return _symmetric(graph, quantizer, x, axis)
    if isinstance(quantizer, asymmetric):
        return _asymmetric(graph, quantizer, x, axis)
    if isinstance(quantizer, lsq | elastic):
        step = np.maximum(np.float32(p), np.float32(LEAST_STEP))
        if quantizer.signed or isinstance(quantizer, elastic):
            return _Grid(x, step, *quantizer.levels)
        low = _reduced(graph, "ReduceMin", x, None)
        return _Grid(graph.op("Sub", x, low), step, *quantizer.levels, low)
    raise ConfigError(
        site,
        f"ONNX cannot express the activation quantizer {quantizer!r:.80}",
        fix="train with symmetric, asymmetric, clipped, lsq or elastic",
    )


def _symmetric(graph: Graph, quantizer: symmetric, x: str, axis: Axis) -> _Grid:
    half = 2 ** (quantizer.bits - 1)
    top = half - 1 if quantizer.levels == "restricted" else half
    size = _reduced(graph, "ReduceMax", graph.op("Abs", x), axis)
    return _Grid(x, graph.op("Div", size, np.float32(top)), -half, half - 1)


def _asymmetric(graph: Graph, quantizer: asymmetric, x: str, axis: Axis) -> _Grid:
    top = 2**quantizer.bits - 1
    low = _reduced(graph, "ReduceMin", x, axis)
    width = graph.op("Sub", _reduced(graph, "ReduceMax", x, axis), low)
    if quantizer.levels == "widened":
        width = graph.op("Add", width, np.float32(1e-8))
    steps = top + 1 if quantizer.levels == "full" else top
    scale, zero = graph.op("Div", width, np.float32(steps)), low
    if quantizer.levels == "full":
        safe = graph.op("Max", scale, _LEAST)
        whole = graph.op("Mul", graph.op("Round", graph.op("Div", low, safe)), scale)
        flat = graph.op("Equal", scale, np.float32(0))
        zero = graph.op("Where", flat, low, whole)
    return _Grid(graph.op("Sub", x, zero), scale, 0, top, zero)


def _reduced(graph: Graph, kind: str, x: str, axis: Axis) -> str:
    """Reduce over axes and keep them; None is all of them."""
    if axis is None:
        return graph.op(kind, x, keepdims=1)
    axes = [axis] if isinstance(axis, int) else list(axis)
    return graph.op(kind, x, keepdims=1, axes=axes)
