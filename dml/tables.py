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
from dml.evaluation.statistics import Spread, spread

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
        f"trained: {record['checkpoint']['rule']} (epoch {record['checkpoint']['epoch']}"
        f"{weights_text(record['checkpoint'])}), "
        f"{record['seconds']['training']:.0f} s of training"
    )
    columns = {"frozen": "frozen", "untrained": "untrained", "trained": "test"}
    if "test_plain" in metrics:  # the trained weights are averages
        columns["not averaged"] = "test_plain"
    table = Table()
    table.add_column("metric")
    for column in columns:
        table.add_column(column, justify="right")
    for name in metrics["test"]:
        cells = [f"{metrics[key][name]:.4f}" for key in columns.values()]
        table.add_row(name, *cells, style="bold" if name == "recall@1" else "")
    show(table, head, foot)


def weights_text(checkpoint: Mapping[str, Any]) -> str:
    """`, weights averaged by ema`, or nothing."""
    kind = checkpoint.get("weights", "plain")
    return "" if kind == "plain" else f", weights {kind}"


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


def sweep(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Mean and standard deviation over seeds, a row for each combination of the options `keys`.

    rows: one a job, with its options, `status` and, where it is finished, metrics (`test/recall@1`).
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    measured = dict.fromkeys(k.removeprefix("test/") for r in rows for k in r if k[:5] == "test/")
    shown = [name for name in ("recall@1", "map@r") if name in measured] or list(measured)[:2]
    table = Table()
    for key in keys:
        table.add_column(key, no_wrap=True)
    table.add_column("runs", justify="right")
    for name in shown:
        table.add_column(f"untrained {name}", justify="right")
        table.add_column(name, justify="right", style="bold")
    table.add_column("minutes", justify="right")
    for values, members in groups.items():
        done = [row for row in members if row["status"] == "finished"]
        failed = f" of {len(members)}" if len(done) < len(members) else ""
        cells = [mean_and_sd(done, f"{w}/{name}") for name in shown for w in ("untrained", "test")]
        minutes = f"{sum(row['minutes'] for row in done):.1f}"
        style = "red" if failed else ""
        table.add_row(*values, f"{len(done)}{failed}", *cells, minutes, style=style)
    show(table, "\nOn the test classes; mean ± standard deviation over runs:")


def mean_and_sd(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """`0.9137 ± 0.0041`; the mean alone of one run, - of none."""
    found = [row[column] for row in rows if column in row]
    if not found:
        return "-"
    over = spread(found)
    return f"{over.mean:.4f}" + ("" if over.sd is None else f" ± {over.sd:.4f}")


def search(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str) -> None:
    """The trials of a search: the options `keys` and the metric on the validation classes, best first."""
    column = f"val/{metric}"
    table = Table()
    for name in ("trial", *keys, metric, "epochs", "state"):
        table.add_column(name, justify="left" if name in keys or name == "state" else "right")
    order = sorted(rows, key=lambda row: (row["state"] != "complete", -row.get(column, 0.0)))
    for row in order:
        value = f"{row[column]:.4f}" if column in row else "-"
        style = "bold" if row is order[0] else ""
        cells = [str(row["trial"]), *(row[key] for key in keys), value, str(row.get("epochs", "-"))]
        table.add_row(*cells, row["state"], style=style)
    show(table, "\nOn the validation classes:")


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file, empty cells left out."""
    with path.open(newline="") as file:
        return [
            {key: value for key, value in row.items() if value != ""}
            for row in csv.DictReader(file)
        ]
