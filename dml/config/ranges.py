"""Fields with a range: how a schema says which values are legal, and how they are checked.

A hyperparameter's value lives in the YAML, its type and range in the schema, its meaning in the class
that uses it.
"""

import dataclasses
import math
from typing import Any

from dml.errors import ConfigurationError, Problem

MISSING: Any = "???"  # omegaconf's mark for a value that the YAML must give


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    note: str = "",
) -> Any:
    """A number in [low, high]; `open_low` or `open_high` leave the bound itself out.

    `note` is a sentence for the error message, such as the paper's own value.
    """
    meta = {"low": low, "high": high, "open": (open_low, open_high), "note": note}
    return dataclasses.field(default=MISSING, metadata=meta)


def positive(note: str = "") -> Any:
    """A number above 0."""
    return number(0, open_low=True, note=note)


def count(low: int = 1, high: float = math.inf, note: str = "") -> Any:
    """A whole number of at least `low`."""
    return number(low, high, note=note)


def choice(*names: str, note: str = "") -> Any:
    """One of a few words."""
    return dataclasses.field(default=MISSING, metadata={"choices": names, "note": note})


def interval_text(meta: Any) -> str:
    """`(0, 1]` for a field's metadata, or `> 0` where only one bound exists."""
    low, high, (open_low, open_high) = meta["low"], meta["high"], meta["open"]
    if math.isinf(high) and math.isinf(low):
        return "must be finite"
    if math.isinf(high):
        return f"must be {'above' if open_low else 'at least'} {low:g}"
    if math.isinf(low):
        return f"must be {'below' if open_high else 'at most'} {high:g}"
    return f"must lie in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"


def range_problems(node: Any, prefix: str) -> list[Problem]:
    """All fields of a dataclass instance whose value is out of its range."""
    problems = []
    for field in dataclasses.fields(node):
        value, meta = getattr(node, field.name), field.metadata
        if value == MISSING:
            continue
        shown = f"{value:g}" if isinstance(value, float) else value
        where = f"{prefix}.{field.name}={shown}"
        note = f" {meta['note']}" if meta.get("note") else ""
        if "choices" in meta and value is not None and value not in meta["choices"]:
            problems.append(Problem(where, f"must be one of {', '.join(meta['choices'])}.{note}"))
        elif "low" in meta and isinstance(value, int | float) and not isinstance(value, bool):
            low, high, (open_low, open_high) = meta["low"], meta["high"], meta["open"]
            below = value <= low if open_low else value < low
            above = value >= high if open_high else value > high
            if math.isnan(value) or math.isinf(value) or below or above:
                problems.append(Problem(where, f"{interval_text(meta)}.{note}"))
    return problems


class Checked:
    """Base of the schema dataclasses: building one with an illegal value raises ConfigurationError.

    A class adds rules between its own fields by overriding `problems`.
    """

    def problems(self, prefix: str) -> list[Problem]:
        """Everything wrong with this node; `prefix` is its group, such as ``loss``."""
        return range_problems(self, prefix)

    def __post_init__(self):
        problems = self.problems(type(self).__name__)
        if problems:
            raise ConfigurationError(problems)
