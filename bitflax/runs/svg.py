"""Line plots and bars as SVG text: no library, no script, colours from the page's CSS.

The page gives ``.axis``, ``.grid``, ``.line``, ``.dot``, ``.dash``, ``.bar`` and
``.back`` their colours, light and dark. A drawing is 340 units wide, a phone's width.
"""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 340, 202
MOST_DOTS = 40
Number = float | int
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 22, 36


def line_plot(
    label: str,
    points: Sequence[tuple[Number, Number]],
    *,
    levels: Sequence[tuple[str, Number]] = (),
    axes: tuple[str, str] = ("step", ""),
) -> str:
    """Return a plot of y over x, which starts at 0.

    y is logarithmic where its largest value is more than 30 times its smallest. Up to
    ``MOST_DOTS`` points are drawn as dots too, with their numbers as tooltips.

    Args:
      label: the name of the picture, which a screen reader speaks.
      points: (x, y), at least one, finite.
      levels: names and values of dashed lines.
      axes: the names of x and y.

    >>> line_plot("loss", [(1, 2.0), (2, 1.0)]).count('class="line"')
    1
    """
    xs, ys = zip(*points, strict=True)
    every = [*ys, *(value for _, value in levels)]
    log = min(every) > 0 and max(every) > 30 * min(every)
    x_axis = _Axis(min(0, *xs), max(xs), _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(min(every), max(every), HEIGHT - _BOTTOM, _TOP, log=log, room=0.06)
    parts = [_grid(x_axis, y_axis), _names(*axes)]
    parts += _levels([(name, y_axis.at(value)) for name, value in levels])
    way = " L".join(f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in thin(points))
    parts.append(f'<path class="line" d="M{way}"/>')
    for x, y in points if len(points) <= MOST_DOTS else ():
        tip = f"<title>step {x:g}: {y:.4g}</title>"
        at = f'cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}"'
        parts.append(f'<circle class="dot" {at} r="3.5">{tip}</circle>')
    return _svg(label, HEIGHT, parts)


def histogram(
    label: str,
    edges: Sequence[Number],
    counts: Sequence[int],
    levels: Sequence[tuple[str, Number]] = (),
    axes: tuple[str, str] = ("", ""),
) -> str:
    """Return bars of counts between edges, and dashed upright lines at levels.

    >>> histogram("w", [-1, 0, 1], [3, 1]).count('class="bar"')
    2
    """
    x_axis = _Axis(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(0, max(counts) or 1, HEIGHT - _BOTTOM, _TOP)
    parts, bottom = [_grid(x_axis, y_axis), _names(*axes)], HEIGHT - _BOTTOM
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        x, y = x_axis.at(low), y_axis.at(count)
        box = f'x="{x:.1f}" y="{y:.1f}" width="{x_axis.at(high) - x:.1f}"'
        parts.append(f'<rect class="bar" {box} height="{bottom - y:.1f}"/>')
    for name, value in levels:
        x = x_axis.at(value)
        parts.append(f'<path class="dash" d="M{x:.1f} {_TOP}V{bottom}"/>')
        parts.append(_text(x + 4, _TOP + 8, name, "start"))
    return _svg(label, HEIGHT, parts)


def matrix(label: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return a square of cells, the darker the larger their share of their row.

    A cell's names and count are its tooltip.

    >>> matrix("confusion", [[3, 1], [0, 2]], ["a", "b"]).count("<title>")
    4
    """
    size, parts = WIDTH / len(counts), []
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            share = count / (sum(row) or 1)
            tip = f"{names[i]}, predicted {names[j]}: {count}"
            box = f'x="{j * size:.1f}" y="{i * size:.1f}" width="{size:.1f}"'
            box += f' height="{size:.1f}" fill-opacity="{share:.3f}"'
            title = f"<title>{escape(tip)}</title>"
            parts.append(f'<rect class="cell" {box}>{title}</rect>')
            if size > 22 and count:
                x, y = (j + 0.5) * size, (i + 0.5) * size + 4
                kind = ' class="on"' if share > 0.5 else ""
                parts.append(f"<g{kind}>{_text(x, y, str(count), 'middle')}</g>")
    return _svg(label, WIDTH, parts)


def stations(label: str, boxes: Sequence[Sequence[str]]) -> str:
    """Return boxes one under the other, joined by arrows; the first line is a name.

    >>> stations("way", [("teacher", "0.80"), ("packed", "0.79")]).count("<rect")
    2
    """
    height, gap, parts = 44, 22, []
    for i, (name, *lines) in enumerate(boxes):
        y = i * (height + gap)
        box = f'x="0.5" y="{y + 0.5}" width="{WIDTH - 1}" height="{height - 1}" rx="6"'
        parts.append(f'<rect class="station" {box}/>')
        parts.append(f'<text class="name" x="12" y="{y + 18}">{escape(name)}</text>')
        said = "   ".join(line for line in lines if line)
        parts.append(_text(12, y + 35, said, "start"))
        if i:
            x, low = WIDTH / 2, y - 2
            head = f"M{x - 4} {low - 5}L{x} {low}L{x + 4} {low - 5}"
            parts.append(f'<path class="line" d="M{x} {y - gap + 2}V{low}{head}"/>')
    return _svg(label, len(boxes) * (height + gap) - gap, parts)


def bar_chart(label: str, bars: Sequence[tuple[str, Number, str]]) -> str:
    """Return horizontal bars, each under its name.

    Args:
      label: the name of the picture, which a screen reader speaks.
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
    """Return at most ``most`` points, each the mean of as many neighbours.

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
    """Maps values to coordinates, and chooses the values that get a tick."""

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


def _names(x: str, y: str) -> str:
    """Return the axes' names: x's below on the right, y's above on the left."""
    right = _text(WIDTH - _RIGHT, HEIGHT - 4, x, "end") if x else ""
    return right + (_text(0, 10, y, "start") if y else "")


def _levels(levels: Sequence[tuple[str, Number]]) -> list[str]:
    """Return dashed lines with their names; near lines share a row of names."""
    parts, rows = [], []
    for name, y in levels:
        parts.append(f'<path class="dash" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        near = next((row for row in rows if abs(row[0] - y) < 12), None)
        if near is None:
            rows.append((y, [name]))
        else:
            near[1].append(name)
    # Curves rise from the lower left: the upper left is free.
    parts += [_text(_LEFT + 4, y - 5, ", ".join(names), "start") for y, names in rows]
    return parts


def _tick(value: Number) -> str:
    value = round(value, 10)
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if 0 < abs(value) < 0.001:
        return f"{value:.2g}" if value < 1e-4 else f"{value * 1e4:.3g}e-4"
    return f"{value:.4g}"


def _text(x: Number, y: Number, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="axis-text" {place}>{escape(text)}</text>'


def _svg(label: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
