"""What a run prints: the choices at the start, the metrics at the end."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dml.build import loss_parts
from dml.comparison import Row
from dml.config.compose import Composed
from dml.data.index import SPLITS, ImageIndex
from dml.evaluation.statistics import Spread

log = logging.getLogger("dml")


def show(table: Table, head: str = "", foot: str = "") -> None:
    """Print a table on the terminal, in colour where there is one, and put it into the log file.

    head, foot: lines above and below it, as wide as they are.
    """
    lines = [part for part in (head, table, foot) if part != ""]
    Console(highlight=False, soft_wrap=True).print(*lines, sep="\n")
    text = io.StringIO()
    Console(file=text, width=100, color_system=None).print(*lines, sep="\n")
    log.info("\n%s", text.getvalue().rstrip(), extra={"quiet": True})


def choices(composed: Composed) -> None:
    """Every group, its choice, and who chose it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("group", "choice", "chosen by"):
        table.add_column(column)
    parts = loss_parts(composed.config)
    for choice in composed.choices:
        style = "cyan" if choice.chosen_by == "command line" else ""
        part = parts.get(choice.group)
        doubt = "" if part is None or part.verified else " (not verified here)"
        table.add_row(choice.group, choice.option + doubt, choice.chosen_by, style=style)
    values = [w for w in composed.overrides if w.split("=")[0].lstrip("+") not in groups(composed)]
    for word in values:
        key, _, value = word.lstrip("+").partition("=")
        table.add_row(key, value, "command line", style="cyan")
    show(table)


def groups(composed: Composed) -> set[str]:
    """Names of the groups that were chosen."""
    return {choice.group for choice in composed.choices}


def data(index: ImageIndex) -> str:
    """One line: the images and classes of every split."""
    parts = {split: index.part(split) for split in SPLITS}
    told = [f"{len(p)} {s} images of {p.num_classes} classes" for s, p in parts.items()]
    is_query = parts["test"].is_query
    if is_query is not None:
        told[-1] += f" ({is_query.sum()} queries, {(~is_query).sum()} gallery)"
    return f"{index.name}: {', '.join(told)}"


def searched(counts: Mapping[str, Any]) -> str:
    """`8 images`, or `3 queries in a gallery of 5 images`."""
    if "queries" in counts:
        return f"{counts['queries']} queries in a gallery of {counts['gallery']} images"
    return f"{counts['images']} images"


def results(record: Mapping[str, Any]) -> None:
    """Metric by metric: frozen trunk, untrained encoder, trained encoder, on the test classes."""
    metrics, split = record["metrics"], record["data"]["splits"]["test"]
    name = record["data"]["name"]
    head = f"\n{name}: {searched(split)} of {split['classes']} "
    if record["protocol"]["class_disjoint"]:
        head += "unseen test classes"
    else:
        head += "test classes, not all of them unseen in training (closed set)"
    head += averaged(record["config"]["evaluation"])
    foot = (
        f"trained: {record['checkpoint']['rule']} (epoch {record['checkpoint']['epoch']}), "
        f"{record['seconds']['training']:.0f} s of training"
    )
    table = Table()
    table.add_column("metric")
    for column in ("frozen", "untrained", "trained"):
        table.add_column(column, justify="right")
    for name, trained in metrics["test"].items():
        before = metrics["untrained"][name]
        table.add_row(
            name,
            f"{metrics['frozen'][name]:.4f}",
            f"{before:.4f}",
            f"{trained:.4f}",
            style="bold" if name == "recall@1" else "",
        )
    show(table, head, foot)


def evaluation(result: Mapping[str, Any], name: str) -> None:
    """Metrics of one encoder on one split; `name` is what the encoder is called."""
    title = f"{result['data']['name']}, {result['split']}: {searched(result)} of "
    title += f"{result['classes']} classes"
    if not result.get("class_disjoint", True):
        title += " (closed set: the splits share classes)"
    title += averaged(result["options"]["evaluation"])
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column(name, justify="right")
    after = result.get("post", {})
    if after:
        table.add_column(f"after {', '.join(after['steps'])}", justify="right")
    for metric, value in result["metrics"].items():
        cells = []
        if after:
            cells.append(f"{after['metrics'][metric]:.4f}" if metric in after["metrics"] else "-")
        table.add_row(metric, f"{value:.4f}", *cells)
    show(table)


def averaged(options: Mapping[str, Any]) -> str:
    """What a table says of means that are not the usual ones."""
    return "; means over classes" if options.get("average") == "macro" else ""


def runs(names: Sequence[str], spreads: Mapping[str, Spread]) -> None:
    """Metric by metric: mean, standard deviation and 95 % interval over several runs."""
    head = "\n".join([f"\n{len(names)} runs, each by itself:", *(f"  {name}" for name in names)])
    table = Table()
    table.add_column("metric")
    for column in ("mean", "sd", "95 % interval of the mean"):
        table.add_column(column, justify="right")
    for metric, found in spreads.items():
        sd = "-" if found.sd is None else f"{found.sd:.4f}"
        table.add_row(metric, f"{found.mean:.4f}", sd, interval(found.low, found.high))
    show(table, head)


def comparison(result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Two runs: their means, and their difference as queries and as classes are drawn again."""
    first, second = result["runs"]
    head = (
        f"\n{result['data']['name']}, {result['split']}: {result['queries']} queries of "
        f"{result['classes']} classes\nA: {first}\nB: {second}"
    )
    table = Table()
    table.add_column("metric")
    for column in ("A", "B", "B - A"):
        table.add_column(column, justify="right")
    table.add_column("over")
    for column in ("95 % interval", "p"):
        table.add_column(column, justify="right")
    for row in rows:
        means = (f"{row.first:.4f}", f"{row.second:.4f}", f"{row.queries.mean:+.4f}")
        for cells, what in (((row.metric, *means), "queries"), (("", "", "", ""), "classes")):
            found = getattr(row, what)
            table.add_row(
                *cells, what, interval(found.low, found.high, "+"), f"{found.p_value:.4f}"
            )
    show(table, head, f"paired bootstrap, {result['bootstrap']['resamples']} resamples")


def interval(low: float | None, high: float | None, sign: str = "") -> str:
    """`[0.1000, 0.2000]`, or `-` where there is none."""
    if low is None or high is None:
        return "-"
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]"


def sweep(jobs: Sequence[tuple[str, Mapping[str, Any] | None]]) -> None:
    """One row a job: its untrained and trained Recall@1 and MAP@R, or that it failed."""
    table = Table(title="Sweep", title_justify="left")
    table.add_column("job", no_wrap=True, min_width=max(len(name) for name, _ in jobs))
    for column in ("recall@1 untrained", "trained", "map@r untrained", "trained", "minutes"):
        table.add_column(column, justify="right")
    for name, record in jobs:
        if record is None:
            table.add_row(name, "failed", style="red")
            continue
        cells = [
            f"{record['metrics'][which][metric]:.4f}" if metric in record["metrics"][which] else "-"
            for metric in ("recall@1", "map@r")
            for which in ("untrained", "test")
        ]
        table.add_row(name, *cells, f"{record['seconds']['total'] / 60:.1f}")
    show(table)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file, empty cells left out."""
    with path.open(newline="") as file:
        return [
            {key: value for key, value in row.items() if value != ""}
            for row in csv.DictReader(file)
        ]
