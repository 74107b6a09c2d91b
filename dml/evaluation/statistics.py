"""What chance does to a number: between two encoders on the same queries, and between seeds.

Torch-free.  A test set is a sample of queries, and of classes.  Whether one encoder is better than another is
asked of the differences between their values for the same query, which vary less than the values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its interval, and the two-sided p-value of there being none."""

    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Spread:
    """Mean of n runs, their standard deviation (n - 1), the interval of the mean; None for one run."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float], confidence: float = CONFIDENCE) -> Spread:
    """Mean of independent runs and its interval by Student's t: mean ± t(n - 1) sd / sqrt(n)."""
    from scipy.special import stdtrit  # a quarter of a second, which a training run need not wait

    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Spread(1, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    reach = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / sqrt(n)
    return Spread(n, mean, sd, mean - reach, mean + reach)


def welch(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Difference:
    """Mean of first less that of second, both independent runs, by Welch's t (Biometrika 34, 1947).

    The standard error is sqrt(v1 / n1 + v2 / n2), its degrees of freedom are Welch and Satterthwaite's.
    Raises ValueError: fewer than two runs on a side.
    """
    from scipy.special import stdtr, stdtrit

    if min(len(first), len(second)) < 2:
        raise ValueError("needs two runs on either side")
    mean = float(np.mean(first) - np.mean(second))
    a, b = (float(np.var(side, ddof=1)) / len(side) for side in (first, second))
    if a + b == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    error = sqrt(a + b)
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    p_value = 2 * float(stdtr(freedom, -abs(mean) / error))
    return Difference(mean, mean - reach, mean + reach, p_value)


def paired_bootstrap(
    differences: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> list[Difference]:
    """Percentile bootstrap of the mean of paired differences (Efron & Tibshirani 1993, chapters 13, 16).

    differences: float64 [n, m], of n queries in m metrics, each resampled together.  clusters: int [n];
    whole clusters are drawn then, and each draw's mean is over the queries in it.  None: queries are
    drawn.  Queries alone ask: would it hold for other images of these classes?  Clusters, being the
    classes: for other classes?

    The p-value is the level at which the two-sided interval begins to include 0: twice the smaller share
    of resamples on either side of 0, both counted with the sample itself, so that it is never 0; 1 where
    there is no difference at all.  Time O(resamples x n), memory O(n).

    Raises ValueError: nothing to draw from, or values that are not finite.
    """
    if differences.ndim != 2 or not differences.size:
        raise ValueError(f"differences have shape {list(differences.shape)}; expected [n, m]")
    if not np.isfinite(differences).all():
        raise ValueError("differences hold NaN or infinity: leave out queries without a positive")
    sums, sizes = differences, None
    if clusters is not None:
        _, member = np.unique(clusters, return_inverse=True)
        sizes = np.bincount(member)
        columns = [np.bincount(member, weights=column) for column in differences.T]
        sums = np.stack(columns, axis=1)
    means = resampled_means(sums, sizes, resamples, np.random.default_rng(seed))
    return [
        summarised(float(column.mean()), drawn, confidence)
        for column, drawn in zip(differences.T, means.T, strict=True)
    ]


def resampled_means(
    sums: np.ndarray, sizes: np.ndarray | None, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means of as many clusters as there are, drawn with replacement; float64 [resamples, m].

    sums: float64 [c, m], over the items of each cluster.  sizes: items in each, [c]; None: one.
    """
    count = len(sums)
    means = np.empty((resamples, sums.shape[1]))
    for row in means:
        drawn = np.bincount(rng.integers(0, count, size=count), minlength=count).astype(np.float64)
        row[:] = drawn @ sums / (count if sizes is None else drawn @ sizes)
    return means


def summarised(mean: float, drawn: np.ndarray, confidence: float) -> Difference:
    """Interval and p-value out of resampled means, float64 [resamples]."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return Difference(mean, float(low), float(high), p_value)
