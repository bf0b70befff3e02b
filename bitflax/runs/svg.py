"""Line plots and bars as SVG text: no library, no script, colours from the page's CSS.

The page gives ``.axis``, ``.grid``, ``.line``, ``.dot``, ``.dash``, ``.bar`` and
``.back`` their colours, light and dark. A drawing is 340 units wide, a phone's width.
"""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 340, 190
Number = float | int
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 20, 24


def line_plot(
    label: str,
    points: Sequence[tuple[Number, Number]],
    *,
    dashed: tuple[str, Number] | None = None,
    dots: bool = False,
) -> str:
    """Return a plot of y over x from 0 on; y is logarithmic over a factor of 30.

    Args:
      label: what a screen reader says.
      points: (x, y), at least one, finite.
      dashed: a level line's name and value.
      dots: draw each point with its numbers as a tooltip; for few points.

    >>> line_plot("loss", [(1, 2.0), (2, 1.0)]).count('class="line"')
    1
    """
    xs, ys = zip(*points, strict=True)
    levels = [*ys, dashed[1]] if dashed else list(ys)
    log = min(levels) > 0 and max(levels) > 30 * min(levels)
    x_axis = _Axis(min(0, *xs), max(xs), _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(min(levels), max(levels), HEIGHT - _BOTTOM, _TOP, log=log, room=0.06)
    parts = [_grid(x_axis, y_axis)]
    if dashed:
        parts.append(_level(dashed[0], y_axis.at(dashed[1])))
    shown = points if dots else thin(points)
    way = " L".join(f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in shown)
    parts.append(f'<path class="line" d="M{way}"/>')
    for x, y in points if dots else ():
        tip = f"<title>step {x:g}: {y:.4g}</title>"
        at = f'cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}"'
        parts.append(f'<circle class="dot" {at} r="3.5">{tip}</circle>')
    return _svg(label, HEIGHT, parts)


def bar_chart(label: str, bars: Sequence[tuple[str, Number, str]]) -> str:
    """Return horizontal bars, each under its name.

    Args:
      label: what a screen reader says.
      bars: (name, value, the value as text).

    >>> bar_chart("size", [("teacher", 90.9, "90.9 MB")]).count("<rect")
    2
    """
    most = max((value for _, value, _ in bars), default=0) or 1
    parts = []
    for row, (name, value, text) in enumerate(bars):
        y, length = 40 * row, max(2.0, WIDTH * value / most)
        parts.append(f'<text class="name" x="0" y="{y + 13}">{escape(name)}</text>')
        parts.append(
            f'<text class="name" x="{WIDTH}" y="{y + 13}" text-anchor="end">'
            f"{escape(text)}</text>"
        )
        box = f'x="0" y="{y + 19}" height="10" rx="2"'
        parts.append(f'<rect class="back" {box} width="{WIDTH}"/>')
        parts.append(f'<rect class="bar" {box} width="{length:.1f}"/>')
    return _svg(label, 40 * len(bars), parts)


def thin(
    points: Sequence[tuple[Number, Number]], most: int = 150
) -> list[tuple[Number, Number]]:
    """Return the means of at most ``most`` runs of neighbouring points.

    >>> thin([(1, 4.0), (2, 2.0), (3, 1.0), (4, 1.0)], most=2)
    [(1.5, 3.0), (3.5, 1.0)]
    """
    size = math.ceil(len(points) / most)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run))
        for run in runs
    ]


class _Axis:
    """Numbers to places, and the numbers worth a tick."""

    def __init__(
        self,
        low: Number,
        high: Number,
        start: int,
        end: int,
        *,
        log: bool = False,
        room: Number = 0,
    ):
        self.log, self.start, self.end = log, start, end
        low, high = self._scale(low), self._scale(high)
        level = abs(low) * 0.1 or 1.0
        pad = level if low == high else room * (high - low)
        self.low, self.high = low - pad, high + pad

    def _scale(self, value: Number) -> float:
        return math.log10(value) if self.log else float(value)

    def at(self, value: Number) -> float:
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            steps = (1,) if len(powers) > 4 else (1, 3)
            found = [k * 10.0**power for power in powers for k in steps]
            return [v for v in found if self.low <= math.log10(v) <= self.high]
        step = _nice((self.high - self.low) / 5)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [i * step for i in range(first, last + 1)]


def _nice(step: Number) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= step * 0.999)


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    parts = []
    bottom = HEIGHT - _BOTTOM
    for value in y_axis.ticks():
        y = y_axis.at(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 5, y + 4, _tick(value), "end"))
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{WIDTH - _RIGHT}"/>')
    for value in x_axis.ticks():
        x = x_axis.at(value)
        # The outermost numbers would stick out of the picture.
        anchor = "end" if x > WIDTH - _RIGHT - 12 else "middle"
        parts.append(_text(x, bottom + 16, _tick(value), anchor))
    return "".join(parts)


def _level(name: str, y: Number) -> str:
    line = f'<path class="dash" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
    # Curves rise from the lower left: the upper left is free.
    return line + _text(_LEFT + 4, y - 5, name, "start")


def _tick(value: Number) -> str:
    value = round(value, 10)
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def _text(x: Number, y: Number, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="axis-text" {place}>{escape(text)}</text>'


def _svg(label: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
