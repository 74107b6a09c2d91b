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
from dml.config.compose import Composed

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


def results(record: Mapping[str, Any]) -> None:
    """Metric by metric: frozen trunk, untrained encoder, trained encoder, on the test classes."""
    metrics, split = record["metrics"], record["data"]["splits"]["test"]
    name = record["data"]["name"]
    head = f"\n{name}: {split['images']} images of {split['classes']} unseen test classes"
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


def evaluation(result: Mapping[str, Any]) -> None:
    """Metrics of one encoder on one split."""
    table = Table(
        title=f"{result['data']['name']}, {result['split']}: {result['images']} images of "
        f"{result['classes']} classes",
        title_justify="left",
    )
    table.add_column("metric")
    table.add_column("trained", justify="right")
    for name, value in result["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    show(table)


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
