"""Where positives stand: what a search finds out and the metrics are computed from. Torch-free."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranks:
    """Where the positives of n queries stand; the argument of every metric.

    start: int64 [n], where each query's levels begin; every query has at least one.  A level is a
    group of tied items that holds a positive: `above` items lie above it, `tied` items are in it,
    `hits` of them positive, and `before` positives lie above it; int64 [levels], best level first.
    relevant: int64 [n], positives of the query.  gallery: int64 [n], items the query is compared with.
    A level at or below the depth that was asked for may have any `above` not less than that depth.
    """

    start: np.ndarray
    above: np.ndarray
    tied: np.ndarray
    hits: np.ndarray
    before: np.ndarray
    relevant: np.ndarray
    gallery: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Depth:
    """How deep ranks must be known.

    best: for a query's best positive.  others: for the rest.  relevant: the rest also down to the
    number of positives.
    """

    best: int
    others: int
    relevant: bool
