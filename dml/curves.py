"""metrics.csv: the curves of a run, one row each time something is logged."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from dml import record

EVERY = 10.0  # seconds; a checkpoint has the file written at once


class Curves(Logger):
    """A Lightning logger that keeps all rows and writes the file whole, aside: no kill leaves half of it.

    (Lightning's own deletes the file when a run is resumed, and writes it again some time later.)

    rows: of earlier sessions of the run, which the file begins with.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]] = ()):
        super().__init__()
        self.path, self.rows = path, [dict(row) for row in rows]
        self.written, self.time = -1, 0.0  # how many rows the file has, and since when

    @property
    def name(self) -> str:
        """Lightning asks; the file has its own."""
        return ""

    @property
    def version(self) -> str:
        """See `name`."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One more row."""
        values = {k: v.item() if hasattr(v, "item") else v for k, v in metrics.items()}
        self.rows.append({**values, "step": step})

    def save(self) -> None:
        """Lightning asks for it at every row; every ten seconds will do."""
        if time.monotonic() - self.time >= EVERY:
            self.write()

    def finalize(self, status: str) -> None:
        """The run has ended, or training has."""
        self.write()

    def write(self) -> int:
        """Bring the file up to now; returns how many rows it has.  Raises OSError that names the file."""
        if self.rows and len(self.rows) != self.written:
            text = io.StringIO(newline="")
            table = csv.DictWriter(text, sorted(set().union(*self.rows)))
            table.writeheader()
            table.writerows(self.rows)
            with record.aside(self.path) as file:
                file.write(text.getvalue().encode())
            self.written, self.time = len(self.rows), time.monotonic()
        return len(self.rows)
