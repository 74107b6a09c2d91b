"""Charts are well-formed, stay within their frame and draw what they are given."""

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from dml.report import figures
from dml.report.figures import Line, Mark


def inside(svg: str) -> ET.Element:
    """The parsed picture; raises where a coordinate lies outside or is no number."""
    root = ET.fromstring(svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for element in root.iter():
        for name, most in (
            ("x", width),
            ("x1", width),
            ("x2", width),
            ("y", height),
            ("y1", height),
        ):
            if name in element.attrib:
                assert -1 <= float(element.attrib[name]) <= most + 1, element.attrib
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", element.attrib.get("d", "")):
            if "transform" not in element.attrib:
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
    assert "nan" not in svg
    return root


@pytest.mark.parametrize(
    "lines",
    [
        [Line("one", [1, 2, 3], [5.0, 1.0, 3.0])],
        [Line("a point", [7], [0.5])],
        [Line("flat", [1, 2], [0.0, 0.0])],
        [Line("large", [0, 1e6], [1e9, -1e9])],
        [Line(f"line {i}", [1, 2], [0.5 + i * 1e-4, 0.5 + i * 1e-4]) for i in range(8)],
        [figures.shortened("long", range(5000), np.sin(np.arange(5000) / 99))],
    ],
)
def test_lines_stay_in_their_frame(lines):
    root = inside(figures.line_chart(lines, title="t", x_name="step", mark=(lines[0].x[0], "here")))
    drawn = [e for e in root.iter() if e.attrib.get("class", "").startswith("line ")]
    assert len(drawn) == len(lines)
    names = [e for e in root.iter() if e.attrib.get("class") == "label"]
    assert [e.text for e in names] == [line.name for line in lines]
    heights = sorted(float(e.attrib["y"]) for e in names)
    assert all(b - a > 10 for a, b in itertools.pairwise(heights))


def test_names_are_escaped():
    svg = figures.line_chart([Line("<b>&", [1], [1.0])], title='"<i>', x_name="<x>")
    assert inside(svg).attrib["aria-label"] == '"<i>'
    assert "<b>" not in svg


def test_a_long_line_keeps_its_means_and_extremes():
    y = np.random.default_rng(0).normal(size=10_000)
    line = figures.shortened("y", range(10_000), y)
    assert len(line.x) == len(line.y) == figures.BUCKETS
    assert np.mean(line.y) == pytest.approx(y.mean())
    assert (min(line.low), max(line.high)) == (y.min(), y.max())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 7, [-2, 0, 2, 4, 6]), (5, 5, [5])],
)
def test_ticks_are_round(low, high, expected):
    assert figures.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    "values", [[-0.2, 0.1, 0.3], [0.5], [0.0, 0.0], [-3.0, -2.0], [1e-9, 2e-9]]
)
def test_a_histogram_draws_every_value_on_its_side(values):
    values = np.array(values)
    root = inside(figures.histogram(values, title="t", x_name="margin"))
    bins = [e.attrib for e in root.iter() if e.attrib.get("class", "").startswith("bin")]
    wrong = [b for b in bins if "wrong" in b["class"]]
    assert bool(wrong) == bool((values < 0).any())
    assert (len(bins) > len(wrong)) == bool((values >= 0).any())
    assert all(float(b["height"]) > 0 for b in bins)


def test_bars_are_as_high_as_their_counts():
    values = np.array([0.05] * 30 + [0.95] * 10)
    root = inside(figures.histogram(values, title="t", x_name="m"))
    heights = [float(e.attrib["height"]) for e in root.iter() if "height" in e.attrib]
    assert heights[0] / heights[-1] == pytest.approx(3, rel=0.01)


def test_a_strip_places_its_marks():
    svg = figures.strip([Mark(0.0, "a"), Mark(1.0, "b", low=0.5, high=1.0)], 0.0, 1.0, width=114)
    root = inside(svg)
    places = [e.attrib["transform"] for e in root.iter() if "transform" in e.attrib]
    assert [float(re.search(r"\(([\d.]+)", p)[1]) for p in places] == [7.0, 107.0]
    whisker = next(e.attrib for e in root.iter() if "whisker" in e.attrib.get("class", ""))
    assert (float(whisker["x1"]), float(whisker["x2"])) == (57.0, 107.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1e-4, "1e-4"),
        (2.5e-5, "2.5e-5"),
        (20_000, "2e4"),
        (1234.5, "1234"),
    ],
)
def test_numbers_are_short(value, text):
    assert figures.number(value) == text
