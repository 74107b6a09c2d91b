"""What an evaluation found, as a table of queries and as a table of classes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    metrics: name -> value; a mean over queries (or over classes, average="macro") where a metric has a
    value per query.
    per_query: name -> float64 [q] in the caller's order, for those metrics; nan for queries that do
    not count, which are those without a positive.
    ids [q]: the queries' ids, or their positions.  labels: int64 [q].
    relevant: int64 [q], positives of each query in the gallery.
    num_queries: all queries.  lone_queries: those without a positive.
    protocol: one line that says how the numbers were made.
    """

    metrics: dict[str, float]
    per_query: dict[str, np.ndarray]
    ids: np.ndarray
    labels: np.ndarray
    relevant: np.ndarray
    num_queries: int
    lone_queries: int
    gallery_size: int
    similarity: str
    backend: str
    protocol: str

    def per_class(self) -> dict[str, np.ndarray]:
        """A table of classes, as columns: label, queries (that count), and each metric of `per_query`.

        Classes in which no query has a positive are left out; labels ascend. int64 and float64 [c].
        """
        counted = self.relevant > 0
        labels, codes, sizes = np.unique(
            self.labels[counted], return_inverse=True, return_counts=True
        )
        means = {
            name: np.bincount(codes, weights=values[counted]) / sizes
            for name, values in self.per_query.items()
        }
        return {"label": labels, "queries": sizes, **means}

    def save_per_query(self, path: str | Path) -> Path:
        """Write a table of queries for later statistics: columns id, label, relevant and each metric.

        A NumPy archive (.npz) of arrays [q] in the caller's order; read it with `numpy.load`. Written
        aside, then renamed.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(
                f"{path}: the table of queries is a NumPy archive; end its name in .npz"
            )
        columns: dict[str, Any] = {"id": self.ids, "label": self.labels}
        columns |= {"relevant": self.relevant, **self.per_query}
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as aside:
            whole = Path(aside) / path.name
            np.savez_compressed(whole, **columns)
            whole.replace(path)
        return path
