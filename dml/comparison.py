"""Two runs on the same queries: how much they differ, and whether chance would do the same.  Torch-free."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dml import record
from dml.embedding_files import arrays_of, reason
from dml.errors import RunError
from dml.evaluation.statistics import Difference, Spread, paired_bootstrap, spread

log = logging.getLogger("dml")


@dataclass(frozen=True)
class PerQuery:
    """A run's values, query by query.

    ids, labels, relevant: [q], as in `dml.evaluation.Result`.  values: metric -> float64 [q].
    """

    ids: np.ndarray
    labels: np.ndarray
    relevant: np.ndarray
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One metric of two runs: their means, and the difference as queries or classes are drawn again."""

    metric: str
    first: float
    second: float
    queries: Difference
    classes: Difference


def key_of(run: Path, data: str, split: str, metrics: Sequence[str], backend: str) -> str:
    """What decides a run's values, query by query; equal keys, equal values.

    data: fingerprint of the split.
    """
    checkpoint = run / record.read(run)["checkpoint"]["file"]
    if not checkpoint.is_file():
        raise RunError(f"the checkpoint {checkpoint} is gone.")
    with checkpoint.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    decisive = {
        "data": data,
        "split": split,
        "weights": weights,
        "metrics": list(metrics),
        "backend": backend,
        "code": record.code_state(),
        "versions": record.versions(),
    }
    return json.dumps(decisive, sort_keys=True)


def kept(path: Path, key: str, evaluate: Callable[[], PerQuery]) -> PerQuery:
    """The values that `path` holds if they were made under the same key, else those of `evaluate`, saved."""
    if path.is_file():
        try:
            arrays = arrays_of(path)
            if str(arrays["key"]) == key:
                values = {n.removeprefix("value:"): v for n, v in arrays.items() if ":" in n}
                again = PerQuery(arrays["ids"], arrays["labels"], arrays["relevant"], values)
                log.info("Using %s: same weights, images, code and versions.", path)
                return again
        except Exception as error:  # a damaged file can fail in any way
            log.warning("%s is damaged (%s); evaluating again.", path, reason(error))
    found = evaluate()
    made: dict[str, Any] = {f"value:{name}": values for name, values in found.values.items()}
    made |= {"key": key, "ids": found.ids, "labels": found.labels, "relevant": found.relevant}
    with record.aside(path) as file:
        np.savez(file, **made)
    log.info("Evaluated; each query's values are kept in %s.", path)
    return found


def compare(first: PerQuery, second: PerQuery, *, resamples: int, seed: int) -> list[Row]:
    """Metric by metric, second less first, over the queries that have a positive.

    Raises RunError: not the same queries.
    """
    for name in ("ids", "labels", "relevant"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            raise RunError(
                f"the runs did not evaluate the same queries: their {name} differ. "
                "Perhaps one of them could not read an image."
            )
    counted = first.relevant > 0
    columns = [
        np.stack([run.values[name][counted] for name in first.values], axis=1)
        for run in (first, second)
    ]
    differences = columns[1] - columns[0]
    by_query, by_class = (
        paired_bootstrap(differences, clusters, resamples=resamples, seed=seed)
        for clusters in (None, first.labels[counted])
    )
    means = [values.mean(axis=0).tolist() for values in columns]
    rows = zip(first.values, *means, by_query, by_class, strict=True)
    return [Row(*row) for row in rows]


def spreads(metrics: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Mean and interval of each metric over several runs."""
    return {name: spread([run[name] for run in metrics]) for name in metrics[0]}
