"""The table and the plot of `dml-eval ... compress=true`."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.table import Table

from dml import measure, record, tables
from dml.embedding_files import Embedded
from dml.errors import RunError
from dml.evaluation.compression import Row, compress

FAMILIES = {  # name -> marker, colour
    "scalar": ("s", "#555555"),
    "PQ": ("o", "#1f77b4"),
    "OPQ": ("^", "#d62728"),
    "ITQ": ("D", "#2ca02c"),
    "binary": ("*", "#9467bd"),
}


def compressed(embedded: Embedded, train: Embedded, name: str, directory: Path) -> list[dict]:
    """Evaluate every code, print the table, write it and the plot beside the record; returns its rows.

    name: of the files, without their endings.  Raises RunError: embeddings that cannot be evaluated.
    """
    vectors, labels, query = embedded.embeddings, embedded.labels, embedded.is_query
    sets = (vectors, labels, None, None)
    if query is not None:
        sets = (vectors[query], labels[query], vectors[~query], labels[~query])
    try:
        with measure.share_bar("Compressing") as progress:
            rows = compress(*sets, train.embeddings, progress)
    except ValueError as error:
        raise RunError(f"these embeddings cannot be compressed: {error}.") from error
    show(rows)
    write_table(rows, directory / f"{name}.csv")
    plot(rows, directory / f"{name}.png")
    return [asdict(row) for row in rows]


def show(rows: Sequence[Row]) -> None:
    """One line per method."""
    table = Table(title="Compressed embeddings", title_justify="left")
    table.add_column("method")
    for column in ("bytes per image", "recall@1", "map@r", "queries per second"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            f"{row.bytes:,}",
            f"{row.recall_at_1:.4f}",
            f"{row.map_at_r:.4f}",
            f"{row.queries_per_second:,.0f}",
        )
    foot = "speed: Faiss, ten nearest, exhaustive, on this machine; the rest does not depend on it"
    tables.show(table, foot=foot)


def write_table(rows: Sequence[Row], path: Path) -> None:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    with record.aside(path) as file:
        file.write(text.getvalue().encode())


def plot(rows: Sequence[Row], path: Path) -> None:
    """Recall@1 against bytes per image, one line per family of codes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.margins(y=0.1)  # room for the labels above the points
    for family, (marker, colour) in FAMILIES.items():
        found = sorted((row.bytes, row.recall_at_1) for row in rows if family_of(row) == family)
        if found:
            sizes, recalls = np.array(found).T
            axes.plot(sizes, recalls, marker=marker, color=colour, label=family)
    for row in rows:
        if family_of(row) == "scalar":
            place = (row.bytes, row.recall_at_1)
            axes.annotate(
                row.method, place, (0, 7), textcoords="offset points", ha="center", fontsize=8
            )
    sizes = sorted({row.bytes for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    axes.set(xlabel="bytes per image", ylabel="Recall@1")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with record.aside(path) as file:
        figure.savefig(file, format="png", dpi=150)


def family_of(row: Row) -> str:
    """Which line of the plot a method is on."""
    if row.method in ("float32", "fp16", "int8"):
        return "scalar"
    return row.method.rstrip("0123456789")
