"""Small charts as inline SVG: no script, colours from the page's style sheet, text that stays readable."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 250  # units of a chart; about CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 92, 12, 38  # around the plot; names of lines stand on the right
LINE_GAP = 13  # between names of lines
BUCKETS = 200  # points of a line; longer ones are means of stretches
MARKERS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Line:
    """Points to join: x ascending.  low, high: where given, a band around them."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def shortened(name: str, x: Sequence[float], y: Sequence[float]) -> Line:
    """A line of at most BUCKETS points: means of equal stretches, in a band from least to greatest."""
    if len(x) <= BUCKETS:
        return Line(name, list(x), list(y))
    parts = [part for part in np.array_split(np.arange(len(x)), BUCKETS) if len(part)]
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return Line(
        name,
        [float(xs[part].mean()) for part in parts],
        [float(ys[part].mean()) for part in parts],
        [float(ys[part].min()) for part in parts],
        [float(ys[part].max()) for part in parts],
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], `about` as many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's number: short."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    mark: tuple[float, str] | None = None,
    fraction: bool = False,
) -> Markup:
    """Lines over a common axis, each named at its end; told apart by colour and marker.

    title: what a screen reader says of it.  mark: (x, what happened there).  fraction: y begins at 0.
    """
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for part in (line.y, line.low, line.high) for y in part or ()]
    low, high = min(ys), max(ys)
    if fraction:
        low, high = 0.0, max(high * 1.05, 1e-3) if high < 0.9 else 1.0
    elif high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at_x(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT)

    def at_y(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - TOP)

    parts = [opening(WIDTH, HEIGHT, title)]
    for y in ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{number(y)}</text>'
        )
    for x in ticks(x_low, x_high):
        parts.append(
            f'<line class="axis" x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="tick" x="{at_x(x):.1f}" y="{bottom + 16}" text-anchor="middle">{number(x)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="name" x="{(LEFT + right) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
    )
    if mark is not None:
        x, what = at_x(mark[0]), mark[1]
        # The words stand where there is more room.
        anchor, shift = ("end", -5) if x > (LEFT + right) / 2 else ("start", 5)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
            f'<text class="name" x="{x + shift:.1f}" y="{bottom - 6}" text-anchor="{anchor}">'
            f"{escape(what)}</text>"
        )
    for place, line in enumerate(lines):
        points = [(at_x(x), at_y(y)) for x, y in zip(line.x, line.y, strict=True)]
        if line.low is not None and line.high is not None:
            over = [(at_x(x), at_y(y)) for x, y in zip(line.x, line.high, strict=True)]
            under = [(at_x(x), at_y(y)) for x, y in zip(line.x, line.low, strict=True)]
            parts.append(f'<path class="band s{place}" d="{path(over + under[::-1])}Z"/>')
        parts.append(f'<path class="line s{place}" d="{path(points)}"/>')
        if len(points) <= 40:
            parts += [marker(MARKERS[place % len(MARKERS)], x, y, f"s{place}") for x, y in points]
    heights = spread_out([at_y(line.y[-1]) for line in lines], TOP + 4, bottom)
    for place, (line, y) in enumerate(zip(lines, heights, strict=True)):
        x = right + 10
        parts.append(marker(MARKERS[place % len(MARKERS)], x, y, f"s{place}"))
        parts.append(f'<text class="label" x="{x + 8}" y="{y + 4:.1f}">{escape(line.name)}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))


def opening(width: float, height: float, title: str) -> str:
    """The start of an SVG picture that says what it is."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">'
    )


def path(points: Sequence[tuple[float, float]]) -> str:
    """Straight lines through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def marker(kind: str, x: float, y: float, css: str, size: float = 3.4) -> str:
    """A small shape."""
    place = f'class="marker {css}" transform="translate({x:.1f} {y:.1f})"'
    if kind == "circle":
        return f'<circle {place} r="{size}"/>'
    half = size * 0.9
    if kind == "square":
        return f'<path {place} d="M-{half} -{half}H{half}V{half}H-{half}Z"/>'
    if kind == "diamond":
        return (
            f'<path {place} d="M0 -{size * 1.3}L{size * 1.3} 0L0 {size * 1.3}L-{size * 1.3} 0Z"/>'
        )
    return f'<path {place} d="M0 -{size * 1.2}L{size * 1.15} {size * 0.9}H-{size * 1.15}Z"/>'


def spread_out(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights of labels near the wanted ones and LINE_GAP apart."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    gap = min(LINE_GAP, (bottom - top) / max(1, len(heights) - 1)) if len(heights) > 1 else LINE_GAP
    placed = [0.0] * len(heights)
    last = top - gap
    for place in order:
        last = placed[place] = max(heights[place], last + gap)
    limit = bottom
    for place in reversed(order):
        limit = placed[place] = min(placed[place], limit)
        limit -= gap
    return placed


def histogram(values: np.ndarray, *, title: str, x_name: str, bins: int = 60) -> Markup:
    """How many values fall where; those below 0 are drawn apart.  values: float64 [n], finite."""
    width, height, left, bottom = 520, 210, 46, 170
    step = nice_step((float(values.max()) - float(values.min())) / bins)
    first, last = math.floor(values.min() / step), math.ceil(values.max() / step)
    edges = np.arange(first, max(last, first + 1) + 1)
    counts, _ = np.histogram(values / step, bins=edges)
    x_low, x_high, most = edges[0], edges[-1], max(1, int(counts.max()))
    right = width - 12

    def at_x(edge: float) -> float:
        return left + (edge - x_low) / (x_high - x_low) * (right - left)

    def at_y(count: float) -> float:
        return bottom - count / most * (bottom - 22)

    parts = [opening(width, height, title)]
    for count in ticks(0, most, 4):
        if count == int(count):
            parts.append(
                f'<line class="grid" x1="{left}" x2="{right}" y1="{at_y(count):.1f}" y2="{at_y(count):.1f}"/>'
                f'<text class="tick" x="{left - 6}" y="{at_y(count) + 4:.1f}" text-anchor="end">'
                f"{int(count):,}</text>"
            )
    for edge, count in zip(edges[:-1], counts, strict=True):
        if count:
            css = "wrong" if edge < 0 else "right"
            parts.append(
                f'<rect class="bin {css}" x="{at_x(edge) + 0.5:.1f}" y="{at_y(count):.1f}" '
                f'width="{max(0.6, at_x(edge + 1) - at_x(edge) - 1):.1f}" '
                f'height="{bottom - at_y(count):.1f}"/>'
            )
    for value in ticks(x_low * step, x_high * step, 8):
        x = at_x(value / step)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{number(round(value, 10))}</text>"
        )
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    if x_low < 0 < x_high:
        zero = at_x(0)
        parts.append(f'<line class="mark" x1="{zero:.1f}" x2="{zero:.1f}" y1="4" y2="{bottom}"/>')
        if zero - left > 110:
            parts.append(
                f'<text class="label" x="{zero - 8:.1f}" y="14" text-anchor="end">'
                "✗ nearest is wrong</text>"
            )
        if right - zero > 110:
            parts.append(f'<text class="label" x="{zero + 8:.1f}" y="14">✓ nearest is right</text>')
    parts.append(
        f'<text class="name" x="{(left + right) / 2}" y="{height - 4}" text-anchor="middle">'
        f"{escape(x_name)}</text></svg>"
    )
    return Markup("".join(parts))


def nice_step(raw: float) -> float:
    """1, 2 or 5 times a power of ten, at least `raw`."""
    if raw <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


@dataclass(frozen=True)
class Mark:
    """A value on a strip with its interval, where it has one; css: how it is drawn."""

    value: float
    css: str
    kind: str = "circle"
    low: float | None = None
    high: float | None = None


def strip(marks: Sequence[Mark], low: float, high: float, width: int = 260) -> Markup:
    """Values of one row of a table, side by side on a scale that the rows share.

    Hidden from screen readers, which have the numbers beside it.
    """
    height, edge = 26, 7

    def at(value: float) -> float:
        return edge + (min(max(value, low), high) - low) / (high - low) * (width - 2 * edge)

    parts = [
        f'<svg class="strip" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<line class="grid" x1="{edge}" x2="{width - edge}" y1="{height / 2}" y2="{height / 2}"/>'
    ]
    for mark in marks:
        if mark.low is not None and mark.high is not None:
            parts.append(
                f'<line class="whisker {mark.css}" x1="{at(mark.low):.1f}" x2="{at(mark.high):.1f}" '
                f'y1="{height / 2}" y2="{height / 2}"/>'
            )
    parts += [marker(mark.kind, at(mark.value), height / 2, mark.css, 4.6) for mark in marks]
    parts.append("</svg>")
    return Markup("".join(parts))


def scale(low: float, high: float, width: int = 260) -> Markup:
    """The axis of strips, for the head of their column."""
    edge = 7
    parts = [f'<svg class="strip" viewBox="0 0 {width} 16" aria-hidden="true">']
    values = ticks(low, high, 4)
    for value in values:
        x = edge + (value - low) / (high - low) * (width - 2 * edge)
        anchor = "start" if x < 20 else "end" if x > width - 20 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="12" text-anchor="{anchor}">{number(round(value, 10))}</text>'
        )
    parts.append("</svg>")
    return Markup("".join(parts))


def key(kind: str, css: str) -> Markup:
    """The mark of a strip, for the head of a column."""
    return Markup(
        f'<svg class="key" viewBox="-6 -6 12 12" aria-hidden="true">{marker(kind, 0, 0, css, 4.6)}</svg>'
    )
