"""Activation quantizers as parts of an ONNX graph, as values or as integers.

The arithmetic is that of ``bitflax.quantization``; both round half to even. Each
quantizer becomes a grid: the value that is rounded, the step, the lowest and highest
multiple of the step, and the zero point that is added again.
"""

from typing import Any, NamedTuple

import numpy as np

from bitflax.errors import ConfigError
from bitflax.inference.onnx_graph import Graph, Value
from bitflax.quantization import LEAST_STEP, Axis, shared_by

_LEAST = np.float32(1e-30)
"""Replaces a step of 0, which a range of nothing but zeros has."""
_FLAT = np.array([-1])
_SIMPLE = (None, -1, (-1,))
"""Axes over which a range is shared: all of them, or only the last."""


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
      graph: the graph that it is added to.
      site: where the quantizer stands, for errors.
      quantizer: one of bitflax's activation quantizers.
      x: what is quantised.
      p: the quantizer's learned parameters, if it has any.
      rank: the number of axes of ``x``.

    Raises:
      ConfigError: the quantizer is not bitflax's own.
    """
    axis, groups = shared_by(quantizer)
    if not groups:
        return _rounded(graph, _grid(graph, site, quantizer, x, p, axis))
    kept = [0] * (rank - 1)
    cut = graph.op("Reshape", x, np.array([*kept, groups, -1]))
    shared = (*range(rank - 1), rank)
    y = _rounded(graph, _grid(graph, site, quantizer, cut, p, shared))
    return graph.op("Reshape", y, np.array([*kept, -1]))


def has_codes(quantizer: Any) -> bool:
    """Whether its values fit into 8-bit integers with one scale a token, or one in all.

    >>> from bitflax.quantization import lsq, symmetric
    >>> [has_codes(q) for q in (symmetric(8), symmetric(8, groups=4), lsq(16), None)]
    [True, False, False, False]
    """
    if not hasattr(quantizer, "grid") or quantizer.bits > 8:
        return False
    axis, groups = shared_by(quantizer)
    return not groups and (axis in _SIMPLE or not quantizer.grid.steps)


def is_flat(quantizer: Any) -> bool:
    """Whether it quantises rows [rows, n] as it does [batch, sequence, n]."""
    axis, groups = shared_by(quantizer)
    return bool(groups) or axis in ((), *_SIMPLE)


def codes(graph: Graph, site: str, quantizer: Any, x: str, p: Any = None) -> Codes:
    """Add a quantizer that ``has_codes`` and return its integers.

    Args:
      graph: the graph that it is added to.
      site: where the quantizer stands, for errors.
      quantizer: one of bitflax's activation quantizers.
      x: a matrix [rows, n].
      p: the quantizer's learned parameters, if it has any.

    Raises:
      ConfigError: the quantizer is not bitflax's own.
    """
    axis, _ = shared_by(quantizer)
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
    if (low, top) != (0, 255):  # else uint8 itself clips
        integers = graph.op("Clip", integers, low, top)
    by_token = isinstance(scale, str) and axis is not None
    return Codes(integers, middle, scale, grid.zero, by_token)


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
    """Return the grid of a quantizer whose scale is shared over ``axis``."""
    levels = getattr(quantizer, "grid", None)
    if levels is None:
        raise ConfigError(
            site,
            f"ONNX cannot express the activation quantizer {quantizer!r:.80}",
            fix="train with symmetric, asymmetric, clipped, lsq or elastic",
        )
    low, top, centred, steps, spare, whole = levels
    if not steps:  # the learned parameter is the step itself
        step, least = np.maximum(np.float32(p), np.float32(LEAST_STEP)), None
        if not centred:
            least = _reduced(graph, "ReduceMin", x, None)
            x = graph.op("Sub", x, least)
        return _Grid(x, step, low, top, least)
    if p is not None:  # the ends of a clip
        ends = np.asarray(p, np.float32)
        x = graph.op("Clip", x, ends[0], ends[1])
    if centred:
        size = _reduced(graph, "ReduceMax", graph.op("Abs", x), axis)
        return _Grid(x, graph.op("Div", size, np.float32(steps)), low, top)
    least = _reduced(graph, "ReduceMin", x, axis)
    width = graph.op("Sub", _reduced(graph, "ReduceMax", x, axis), least)
    if spare:
        width = graph.op("Add", width, np.float32(spare))
    scale, zero = graph.op("Div", width, np.float32(steps)), least
    if whole:
        safe = graph.op("Max", scale, _LEAST)
        zero = graph.op("Mul", graph.op("Round", graph.op("Div", least, safe)), scale)
        flat = graph.op("Equal", scale, np.float32(0))
        zero = graph.op("Where", flat, least, zero)
    return _Grid(graph.op("Sub", x, zero), scale, low, top, zero)


def _reduced(graph: Graph, kind: str, x: str, axis: Axis) -> str:
    """Reduce over axes, None being all of them, and keep them with length 1."""
    if axis is None:
        return graph.op(kind, x, keepdims=1)
    axes = [axis] if isinstance(axis, int) else list(axis)
    return graph.op(kind, x, keepdims=1, axes=axes)
