"""The plots of the results: SVG whose content follows from the points alone.

A plot ends in a comment with the checksums of its points and of its picture, so that a check can tell
whether it is current without drawing it anew: versions of matplotlib differ in their bytes.
Torch-free; matplotlib is imported only to draw.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dml.report.results import Row, Section

STAMP = re.compile(r"<!-- dml-report points=([0-9a-f]{64}) picture=([0-9a-f]{64}) -->\n\Z")
NAMES = {"recall@1": "Recall@1", "map@r": "MAP@R"}
OURS, PEER, PUBLISHED = "#1f5fa8", "#c2571a", "#555555"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "dml-report",  # ids in the file; else drawn at random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Point:
    """One experiment.  Percent, rounded as the tables are; low, high: 95 % interval of `ours`."""

    name: str
    ours: float
    low: float | None = None
    high: float | None = None
    published: float | None = None
    peer: float | None = None
    frozen: float | None = None


@dataclass(frozen=True)
class Plot:
    """A picture to be drawn.

    family: the title of the section it belongs to; "": the whole.  published: ours against the published
    numbers, with the diagonal; else experiment by experiment.
    """

    file: str
    title: str
    family: str
    published: bool
    points: tuple[Point, ...]

    @property
    def checksum(self) -> str:
        """SHA-256 of all that is drawn."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def of(sections: Sequence[Section]) -> list[Plot]:
    """The plots for which there are records."""
    found = []
    claimed = [row for section in sections for row in section.claims if row.main and row.ours]
    if claimed:
        points = tuple(point(row, row.experiment) for row in claimed)
        found.append(Plot("published.svg", "Ours against the published numbers", "", True, points))
    for section in sections:
        title, rows = section.family.title, [row for row in section.rows if row.ours]
        for metric in dict.fromkeys(row.metric for row in rows):
            chosen = [
                row for row in rows if row.metric == metric and (row.main or row in section.own)
            ]
            points = [point(row, label(row, section)) for row in chosen]
            points.sort(key=lambda p: (p.ours, p.name))
            if points:
                slug = re.sub(r"\W+", "_", f"{title}_{metric}".lower().replace("@", "_at_"))
                name = f"{title}: {NAMES.get(metric, metric)}"
                found.append(Plot(f"{slug}.svg", name, title, False, tuple(points)))
    return found


def label(row: Row, section: Section) -> str:
    """The experiment within its family."""
    name = row.experiment.removeprefix(section.family.prefix)
    return name if row.models == "single" else f"{name}, {row.models}"


def point(row: Row, name: str) -> Point:
    """A row's numbers, rounded."""
    assert row.ours is not None
    values = (row.ours.mean, row.ours.low, row.ours.high, row.published)
    more = (row.peer and row.peer.mean, row.frozen)
    return Point(name, *(None if v is None else round(v, 2) for v in (*values, *more)))  # type: ignore[arg-type]


def current(svg: str, plot: Plot) -> bool:
    """Whether a picture shows these points and is as it was drawn."""
    stamp = STAMP.search(svg)
    if stamp is None:
        return False
    return stamp[1] == plot.checksum and stamp[2] == digest(svg[: stamp.start()])


def draw(plot: Plot) -> str:
    """The picture as SVG, with its stamp; the same text for the same points and version of matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        height = 4.8 if plot.published else 1.3 + 0.28 * len(plot.points)
        figure = Figure(figsize=(4.8 if plot.published else 6.4, height), layout="constrained")
        (against_published if plot.published else by_experiment)(figure.subplots(), plot)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return f"{svg}<!-- dml-report points={plot.checksum} picture={digest(svg)} -->\n"


def digest(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def by_experiment(axes: Any, plot: Plot) -> None:
    """A line for each experiment: ours with its interval, the published number, the peer, the trunk."""
    heights = range(len(plot.points))
    for name, marker, color, word in (
        ("published", "|", PUBLISHED, "published"),
        ("peer", "s", PEER, "peer"),
    ):
        shown = [(y, getattr(p, name)) for y, p in zip(heights, plot.points, strict=True)]
        shown = [(y, value) for y, value in shown if value is not None]
        if shown:
            ys, values = zip(*shown, strict=True)
            axes.scatter(values, ys, marker=marker, color=color, label=word, s=30, zorder=2)
    frozen = {p.frozen for p in plot.points if p.frozen is not None}
    if len(frozen) == 1:
        axes.axvline(
            frozen.pop(), color=PUBLISHED, linestyle=":", linewidth=1, label="frozen trunk"
        )
    intervals(axes, plot.points, [p.ours for p in plot.points], heights, "x")
    axes.set_yticks(list(heights), [p.name for p in plot.points])
    axes.set_xlabel(f"{plot.title}, percent; bars: 95 % interval over seeds")
    axes.set_ylim(-0.6, len(plot.points) - 0.4)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, 1.0), ncols=4)
    axes.margins(y=0.2)
    axes.set_ylim(-0.6, len(plot.points) + 0.2)


def against_published(axes: Any, plot: Plot) -> None:
    """Ours over the published number, and the diagonal where both are equal."""
    xs = [p.published for p in plot.points if p.published is not None]
    assert len(xs) == len(plot.points)
    both = [*xs, *(p.ours for p in plot.points)]
    low, high = min(both) - 2, max(both) + 2
    axes.plot([low, high], [low, high], color=PUBLISHED, linewidth=1, linestyle="--", label="equal")
    intervals(axes, plot.points, xs, [p.ours for p in plot.points], "y")
    for x, p in zip(xs, plot.points, strict=True):
        axes.annotate(p.name, (x, p.ours), (4, -8), textcoords="offset points", fontsize=6)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("published, percent")
    axes.set_ylabel("ours, percent; bars: 95 % interval over seeds")
    axes.legend(frameon=False, loc="upper left")


def intervals(axes: Any, points: Sequence[Point], xs: Any, ys: Any, along: str) -> None:
    """Ours as dots, with bars along one axis where there is an interval."""
    reach = [0.0 if p.high is None else p.high - p.ours for p in points]
    bars = {"xerr": reach} if along == "x" else {"yerr": reach}
    axes.errorbar(
        list(xs),
        list(ys),
        **bars,
        fmt="o",
        color=OURS,
        markersize=4,
        capsize=2,
        label="ours",
        zorder=3,
    )
