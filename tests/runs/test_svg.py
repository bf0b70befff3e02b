"""Plots: right places, sensible ticks, well-formed text."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from bitflax.runs import svg


def parse(text):
    return ET.fromstring(text)


def of_class(root, name):
    return [node for node in root.iter() if node.get("class") == name]


def way(root):
    numbers = re.findall(r"-?[\d.]+", of_class(root, "line")[0].get("d"))
    return [
        (float(x), float(y)) for x, y in zip(numbers[::2], numbers[1::2], strict=True)
    ]


def test_a_line_goes_through_its_points():
    root = parse(svg.line_plot("loss", [(0, 0.0), (50, 1.0), (100, 0.5)]))
    (x0, y0), (x1, y1), (x2, y2) = way(root)
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.21)  # y grows downwards
    assert 0 < y1 < y0 < svg.HEIGHT
    assert 0 < x0 < x2 < svg.WIDTH


def test_a_wide_range_is_logarithmic():
    root = parse(svg.line_plot("loss", [(0, 100.0), (1, 1.0), (2, 0.01)]))
    (_, y0), (_, y1), (_, y2) = way(root)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)
    labels = {node.text for node in of_class(root, "axis-text")}
    assert {"100", "1", "0.01"} <= labels


@pytest.mark.parametrize(
    "points",
    [
        [(5, 0.5)],
        [(5, 0.0), (5, 0.0)],
        [(0, 1e-12), (1, 3e-12)],
        [(0, -5.0), (10, -1000.0)],
        [(0, 1e9), (10**7, 2e9)],
        [(0, 0.0), (1, 100.0)],
        [(0, 0.1), (1, 1e30)],
    ],
)
def test_any_finite_points_give_a_picture_inside_its_frame(points):
    for x, y in way(parse(svg.line_plot("a", points))):
        assert 0 <= x <= svg.WIDTH
        assert 0 <= y <= svg.HEIGHT


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 780, [0, 200, 400, 600]),
        (0.66, 0.81, [0.7, 0.75, 0.8]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers(low, high, ticks):
    assert svg._Axis(low, high, 0, 100).ticks() == pytest.approx(ticks)


def test_a_level_line_is_inside_even_above_the_curve():
    root = parse(svg.line_plot("a", [(0, 0.1), (9, 0.2)], levels=[("teacher", 0.9)]))
    (dash,) = of_class(root, "dash")
    y = float(re.findall(r"[\d.]+", dash.get("d"))[1])
    assert 0 < y < min(place[1] for place in way(root))
    assert "teacher" in [node.text for node in of_class(root, "axis-text")]
    assert [dot[0].text for dot in of_class(root, "dot")] == [
        "step 0: 0.1",
        "step 9: 0.2",
    ]


def test_long_curves_become_means_that_keep_the_mean():
    points = [(i, math.sin(i)) for i in range(1200)]
    thinned = svg.thin(points)
    assert len(thinned) == 150
    assert sum(y for _, y in thinned) / 150 == pytest.approx(
        sum(y for _, y in points) / 1200
    )
    assert svg.thin(points[:100]) == points[:100]


def test_bars_are_as_long_as_their_values():
    root = parse(svg.bar_chart("size", [("a", 90, "90 MB"), ("b", 45, "45 MB")]))
    widths = [float(bar.get("width")) for bar in of_class(root, "bar")]
    assert widths == [svg.WIDTH, svg.WIDTH / 2]
    assert [node.text for node in of_class(root, "name")] == [
        "a",
        "90 MB",
        "b",
        "45 MB",
    ]


def test_texts_are_escaped():
    nasty = '<script>alert("1 & 2")</script>'
    for text in (
        svg.bar_chart(nasty, [(nasty, 1, nasty)]),
        svg.line_plot(nasty, [(0, 1.0)], levels=[(nasty, 1.0)]),
    ):
        root = parse(text)
        assert root.get("aria-label") == nasty
        assert nasty in [node.text for node in root.iter()]
        assert "<script" not in text


def test_a_matrix_names_each_cell_and_escapes_it():
    drawn = svg.matrix("m", [[8, 2], [0, 0]], ["<a>", "b"])
    assert "<title>&lt;a&gt;, predicted b: 2</title>" in drawn
    assert 'fill-opacity="0.800"' in drawn
    assert drawn.count('fill-opacity="0.000"') == 2  # a class without examples


def test_a_histogram_is_as_high_as_its_counts():
    drawn = svg.histogram("h", [-1, 0, 1], [4, 2], [("+1", 1)])
    high, low = re.findall(r'class="bar".*?height="([\d.]+)"', drawn)
    assert float(high) == pytest.approx(2 * float(low), abs=0.2)
    assert ">+1</text>" in drawn


def test_stations_stand_in_their_order():
    drawn = svg.stations("way", [("teacher", "0.80", ""), ("<x>", "0.79", "1 bit")])
    assert drawn.index("teacher") < drawn.index("&lt;x&gt;")
    assert "0.79   1 bit" in drawn
