"""One self-contained HTML page of a finished run: what was run, what came out, and what it looks like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from dml import record
from dml.data.progress import share_bar
from dml.errors import RunError
from dml.evaluation.names import is_fraction
from dml.evaluation.statistics import Difference, paired_bootstrap
from dml.report import (
    embedding_map,
    figures,
    gallery,
    page_evaluation,
    page_gallery,
    page_pictures,
    page_text,
)
from dml.report.gallery import Neighbours
from dml.report.page_curves import curves
from dml.report.page_evaluation import Evaluated, Intervals
from dml.report.page_map import map_of
from dml.report.page_template import render

FILE = "report.html"
LIMIT = 10_000_000  # bytes; a page is smaller
SPARE = 200_000  # of them, for what is not counted beforehand
SEED = page_gallery.SEED
PAIRS, EXAMPLES = 6, 4  # confused classes, and queries of each pair
SIDE, QUALITY = 128, 72  # of the gallery's pictures
ALL_CLASSES, WORST, BEST = 120, 60, 20  # rows of the table of classes: all, or these
SCRIPTS = ("theme.js", "map.js")


def write(
    run_dir: Path, out: Path | None = None, elsewhere: Mapping[str, str] | None = None
) -> Path:
    """Write the page of a finished run aside, then rename it; returns its path.

    out: the file; None: FILE in the run's directory.  elsewhere: where files of the run lie now, such as
    {"data.root": DIR}.  The test split is embedded and evaluated again; numbers that differ from the
    record's are told in the log and on the page.

    Raises RunError and ConfigurationError as `page_evaluation.evaluate` does, and RunError where the page
    cannot be written.
    """
    path = run_dir / FILE if out is None else out
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else "lies in a directory that does not exist"
        raise RunError(f"{path} {what}: give the page a file's name.")
    text = page(page_evaluation.evaluate(run_dir, elsewhere)).encode()
    if len(text) > LIMIT:
        raise RunError(
            f"the page would take {len(text):,} bytes, more than {LIMIT:,}, without a single picture on "
            "its map: the names of classes or files are too long."
        )
    with record.aside(path) as file:
        file.write(text)
    return path


def page(found: Evaluated) -> str:
    """The page as text.

    The pictures of the map take what room the rest leaves below LIMIT bytes, and are smaller where that
    is little.
    """
    embedded = found.embedded
    with share_bar("Nearest images") as progress:
        near = gallery.neighbours(embedded, page_gallery.NEAREST, progress)
    spans = page_evaluation.intervals(found)
    pairs = gallery.confusions(near, embedded.labels, PAIRS, EXAMPLES)
    shown = embedding_map.sample(embedded.labels, SEED)
    place = {int(item): number for number, item in enumerate(shown)}
    kinds = page_gallery.kinds(found, near, place)
    confused = [page_gallery.confused_pair(found, near, pair, place) for pair in pairs]
    queries = [query for group in (*kinds, *confused) for query in group.queries]
    large = sorted({tile.item for query in queries for tile in (query.image, *query.nearest)})
    small = [int(item) for item in shown if int(item) not in set(large)]
    with share_bar("Pictures") as progress:
        sides = [SIDE] * len(large) + [page_pictures.LADDER[0][0]] * len(small)
        paths = [found.path(item) for item in large + small]
        images = page_pictures.thumbnails(paths, sides, found.preprocess, progress)
    context = {
        **heading(found, spans, pairs),
        **setup(found.finished),
        **curves(found),
        **results(found, spans),
        "kinds": kinds,
        "value_name": gallery.value_name(embedded.similarity),
        "margins": page_gallery.margins(found, near),
        "confused": confused,
        "pictures": {
            item: page_pictures.encoded(image, QUALITY)
            for item, image in zip(large, images, strict=False)
        },
        "map": map_of(found, near, shown, SEED),
        "seed_shown": SEED,
        "classes": class_table(found, near),
    }
    bare = render("page.html.j2", SCRIPTS, thumbnails={}, **context)
    thumbs = page_pictures.fitting(images[len(large) :], LIMIT - SPARE - len(bare.encode()))
    pictured = dict(zip(small, thumbs, strict=False))
    return render("page.html.j2", SCRIPTS, thumbnails=pictured, **context)


def heading(
    found: Evaluated, spans: Intervals, pairs: Sequence[gallery.Confusion]
) -> dict[str, Any]:
    """Title, when and where, the paragraph of plain words, and the three numbers beside it."""
    finished = found.finished
    loss = next(choice["option"] for choice in finished["choices"] if choice["group"] == "loss")
    recall = {name: result.metrics["recall@1"] for name, result in found.results.items()}
    classes = {n: found.results[n].per_class()["recall@1"] for n in ("untrained", "test")}
    span = spans.values.get(("test", "recall@1"))
    told = page_text.summary(
        finished,
        recall,
        span,
        spans.gains.get("recall@1"),
        spans.over,
        classes,
        pairs[0] if pairs else None,
        found.class_names,
    )
    return {
        "title": f"{loss} on {finished['data']['name']}",
        "run_name": found.run.absolute().name,
        "finished": finished,
        "summary": told,
        "headline": [
            (page_evaluation.label(name), recall[name], spans.values.get((name, "recall@1")))
            for name in ("test", "untrained", "frozen")
        ],
        "mismatches": found.mismatches,
        "label": page_evaluation.label,
    }


def setup(finished: Mapping[str, Any]) -> dict[str, Any]:
    """The choices, the values of the command line, facts of the run, and every option."""
    groups = {choice["group"] for choice in finished["choices"]}
    words = [word.lstrip("+").partition("=") for word in finished["overrides"]]
    values = [(key, value) for key, _, value in words if key not in groups]
    minutes, seconds = divmod(round(finished["seconds"]["training"]), 60)
    spent = (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    )
    splits = finished["data"]["splits"]
    code, hardware = finished["code"], finished["hardware"]
    commit = "outside of git" if code["commit"] is None else code["commit"][:12]
    if code["dirty"]:
        commit += ", with changes that are not committed"
    facts = {
        "Data": "; ".join(
            f"{split}: {page_text.plural(part['images'], 'image')} of "
            f"{page_text.plural(part['classes'], 'class')}"
            for split, part in splits.items()
            if part["images"]
        ),
        "Checkpoint": f"{finished['checkpoint']['rule']}: epoch {finished['checkpoint']['epoch']}, "
        f"step {finished['checkpoint']['step']:,}",
        "Training": f"{spent} on {hardware['device']}, seed {finished['seed']}",
        "Peak memory": f"{finished['peak_memory_bytes'] / 1e9:.2f} GB",
        "Started": finished["started"].replace("T", " "),
        "Code": commit,
    }
    if finished["data"]["unreadable"]:
        facts["Unreadable"] = (
            page_text.plural(len(finished["data"]["unreadable"]), "image") + " left out"
        )
    return {
        "choices": finished["choices"],
        "values": values,
        "facts": facts,
        "options": list(flattened(finished["config"])),
        "chosen_keys": {key for key, _ in values},
    }


def flattened(config: Mapping[str, Any], prefix: str = "") -> Any:
    """Yield (name, value) of every option, nested ones as `data.root`."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)


MARKS = {"frozen": "square", "untrained": "diamond", "test": "circle"}


@dataclass(frozen=True)
class Cell:
    """A number of the record and its interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ResultRow:
    """A metric of the three encoders; gain: trained less untrained.  strip: the same as a picture."""

    metric: str
    cells: dict[str, Cell]
    gain: Cell
    strip: Markup


def results(found: Evaluated, spans: Intervals) -> dict[str, Any]:
    """The record's metrics with their intervals, and what the page says of them."""
    rows = []
    recorded = found.finished["metrics"]
    for metric in recorded["test"]:
        cells = {
            name: cell(recorded[name][metric], spans.values.get((name, metric)))
            for name in page_evaluation.ENCODERS
        }
        strip = Markup("")
        if is_fraction(metric):
            marks = [
                figures.Mark(one.value, name, MARKS[name], one.low, one.high)
                for name, one in cells.items()
            ]
            strip = figures.strip(marks, 0.0, 1.0)
        gain = cell(cells["test"].value - cells["untrained"].value, spans.gains.get(metric))
        rows.append(ResultRow(metric, cells, gain, strip))
    return {
        "results": rows,
        "legend": {name: figures.key(kind, name) for name, kind in MARKS.items()},
        "strip_scale": figures.scale(0.0, 1.0),
        "over": spans.over,
        "by_class": by_class(found),
        "protocol": found.results["test"].protocol,
    }


def cell(value: float, span: Difference | None) -> Cell:
    """A number of the record with an interval around it, or none."""
    return Cell(value, *((None, None) if span is None else (span.low, span.high)))


def by_class(found: Evaluated) -> Difference | None:
    """Interval of the trained encoder's Recall@1 were other classes drawn, where its mean is over queries."""
    result = found.results["test"]
    counted = result.relevant > 0
    if found.finished["config"]["evaluation"]["average"] == "macro":
        return None
    values = result.per_query["recall@1"][counted, None]
    return paired_bootstrap(values, result.labels[counted])[0]


@dataclass(frozen=True)
class ClassRow:
    """Recall@1 of a class.  taken_for: the class its queries find first most often, and how many do."""

    name: str
    queries: int
    untrained: float
    trained: float
    taken_for: str
    times: int


@dataclass(frozen=True)
class ClassTable:
    """Classes, the worst first; left_out: how many between `worst` and `best` are not shown."""

    worst: list[ClassRow]
    best: list[ClassRow]
    left_out: int
    total: int
    perfect: int


def class_table(found: Evaluated, near: Neighbours) -> ClassTable:
    """Recall@1 class by class."""
    trained, untrained = (found.results[name].per_class() for name in ("test", "untrained"))
    taken = gallery.most_taken_for(near, found.embedded.labels)
    order = np.lexsort((untrained["recall@1"], trained["recall@1"]))
    rows = []
    for i in order:
        label = int(trained["label"][i])
        other, times = taken.get(label, (-1, 0))
        rows.append(
            ClassRow(
                name=found.class_names[label],
                queries=int(trained["queries"][i]),
                untrained=float(untrained["recall@1"][i]),
                trained=float(trained["recall@1"][i]),
                taken_for=found.class_names[other] if times else "",
                times=times,
            )
        )
    perfect = sum(row.trained == 1 for row in rows)
    if len(rows) <= ALL_CLASSES:
        return ClassTable(rows, [], 0, len(rows), perfect)
    return ClassTable(rows[:WORST], rows[-BEST:], len(rows) - WORST - BEST, len(rows), perfect)
