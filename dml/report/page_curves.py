"""The curves of a run's page: charts out of metrics.csv, each with a caption that has its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from dml import tables
from dml.evaluation.names import is_fraction
from dml.report import figures
from dml.report.page_evaluation import Evaluated

CURVES = 24  # further columns of metrics.csv drawn at most


@dataclass(frozen=True)
class Figure:
    """A chart and what it says in words."""

    svg: Markup
    caption: str


def curves(found: Evaluated) -> dict[str, Any]:
    """Charts out of metrics.csv, and the validation metrics as a table."""
    path = found.run / "metrics.csv"
    if not path.is_file():
        return {"charts": [], "more_charts": [], "val_rows": [], "val_names": [], "no_curves": True}
    columns = columns_of(path)
    chosen = found.finished["checkpoint"]
    mark = (chosen["step"], f"epoch {chosen['epoch']} chosen")
    charts = []
    if "train/loss" in columns:
        steps, loss = columns.pop("train/loss")
        caption = f"Training loss: {loss[0]:.4g} at first, {loss[-1]:.4g} at the end, least {min(loss):.4g}."
        if len(steps) > figures.BUCKETS:
            caption += (
                f" Means of {figures.BUCKETS} stretches, between the least and greatest of each."
            )
        line = figures.shortened("loss", steps, loss)
        charts.append(chart([line], caption, "step"))
    named = [f"val/{name}" for name in found.finished["config"]["evaluation"]["metrics"]]
    val = {n: columns.pop(n) for n in named if n in columns and is_fraction(n[4:])}
    if val:
        selected = f"val/{found.finished['config']['selection']['metric']}"
        told = selected if selected in val else next(iter(val))
        steps, values = val[told]
        best = int(np.argmax(values))
        caption = (
            f"Metrics on the validation classes: {told[4:]} {values[0]:.4f} at first, "
            f"best {values[best]:.4f} at step {steps[best]:,.0f}, {values[-1]:.4f} at the end."
        )
        lines = [figures.shortened(name[4:], *column) for name, column in list(val.items())[:8]]
        charts.append(chart(lines, caption, "step", mark=mark, fraction=True))
    rates = {n: columns.pop(n) for n in list(columns) if n.startswith("lr/")}
    if rates:
        lines = [
            figures.shortened(name.removeprefix("lr/"), *column)
            for name, column in list(rates.items())[:8]
        ]
        tops = ", ".join(
            f"{line.name} {figures.number(max(line.high or line.y))}" for line in lines
        )
        charts.append(
            chart(lines, f"Learning rates; the highest of each: {tops}.", "step", fraction=True)
        )
    more = [
        chart(
            [figures.shortened(name.rsplit("/", 1)[-1], steps, values)],
            f"{name}: {values[0]:.4g} at first, {values[-1]:.4g} at the end, between {min(values):.4g} and "
            f"{max(values):.4g}.",
            "step",
        )
        for name, (steps, values) in list(columns.items())[:CURVES]
    ]
    rows: dict[float, dict[str, float]] = {}
    for name, (steps, values) in val.items():
        for step, value in zip(steps, values, strict=True):
            rows.setdefault(step, {})[name[4:]] = value
    return {
        "charts": charts,
        "more_charts": more,
        "val_rows": thinned(sorted(rows.items())),
        "val_names": [name[4:] for name in val],
        "no_curves": False,
    }


def chart(lines: Sequence[figures.Line], caption: str, x_name: str, **more: Any) -> Figure:
    """Lines with a caption that is also what a screen reader hears."""
    return Figure(figures.line_chart(lines, title=caption, x_name=x_name, **more), caption)


def columns_of(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Name -> (steps done, values) of a metrics file; what is not finite is left out."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for row in tables.read_csv(path):
        step = float(row["step"]) + 1
        for name, text in row.items():
            if name in ("epoch", "step") or not np.isfinite(value := float(text)):
                continue
            steps, values = columns.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return columns


def thinned(rows: list[Any], most: int = 60) -> list[Any]:
    """At most `most` of the rows, evenly, with the first and the last."""
    if len(rows) <= most:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]
