"""A threshold for "the same thing or not" at a chosen false-match rate, from labelled images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dml.errors import RunError
from dml.evaluation.verification import PairCounts, fnmr
from dml.index.hits import Calibration
from dml.index.vectors import scores

MOST = 5000  # images whose pairs are compared: 12.5 million pairs
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Compared:
    """All pairs of some images.

    same: scores of pairs of one class, same_class: its number; [p].  different: scores of the other
    pairs, ascending; [d].
    """

    same: np.ndarray
    same_class: np.ndarray
    different: np.ndarray


def calibrate(
    vectors: np.ndarray,
    classes: np.ndarray,
    similarity: str,
    target: float,
    source: str,
    progress: Callable[[float], None],
    seed: int = 0,
) -> Calibration:
    """The lowest threshold at which at most `target` of the pairs of different classes pass.

    vectors: float32 [n, dim] as an index stores them; time grows with n^2: see `drawn`.  classes: int64
    [n].  source: where they come from, in words.  A pair passes at the threshold or above
    (ISO/IEC 19795-1; as `fnmr@fmr=x` of the evaluation).

    Pairs that share an image or a class are not independent: the intervals draw whole classes again
    (Bolle, Ratha & Pankanti, CVIU 2004, the subsets bootstrap), with the threshold as it is.

    Raises RunError: too few pairs to tell such a rate, or no pair of one class.
    """
    _, classes = np.unique(classes, return_inverse=True)
    pairs = compared(vectors, classes, similarity, progress)
    allowed = int(Fraction(str(target)) * len(pairs.different))
    if not len(pairs.same):
        raise RunError("there are no two images of one class; a threshold needs some.")
    if allowed < 1:
        raise RunError(
            f"fmr={target:g} cannot be told from {len(pairs.different):,} pairs of different classes: "
            f"it takes at least {int(np.ceil(1 / target)):,}. Ask for a larger rate or give more images."
        )
    last_out = pairs.different[len(pairs.different) - allowed - 1]
    threshold = np.nextafter(last_out, np.float32(np.inf), dtype=np.float32)
    passed = len(pairs.different) - np.searchsorted(pairs.different, threshold, "left")
    refused = fnmr(counts(pairs), Fraction(str(target)))
    intervals = intervals_over_classes(vectors, classes, similarity, threshold, pairs, seed)
    return Calibration(
        threshold=float(threshold),
        target=target,
        fmr=float(passed / len(pairs.different)),
        fmr_interval=intervals[0],
        fnmr=refused,
        fnmr_interval=intervals[1],
        images=len(vectors),
        classes=int(classes.max()) + 1,
        source=source,
    )


def drawn(classes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Positions of at most 5,000 images: whole classes, in an order drawn by `seed`.  classes: int64 [n]."""
    if len(classes) <= MOST:
        return np.arange(len(classes))
    names, sizes = np.unique(classes, return_counts=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    enough = int(np.searchsorted(sizes[order].cumsum(), MOST, "right"))
    kept = np.flatnonzero(np.isin(classes, names[order[: max(enough, 2)]]))
    if len(kept) > MOST:  # two classes alone are more
        kept = np.sort(rng.choice(kept, MOST, replace=False))
    return kept


def compared(
    vectors: np.ndarray,
    classes: np.ndarray,
    similarity: str,
    progress: Callable[[float], None],
) -> Compared:
    """Every image with every later one."""
    same, same_class, different = [], [], []
    for row, (score, is_same) in enumerate(rows_of_pairs(vectors, classes, similarity)):
        same.append(score[is_same])
        same_class.append(np.full(int(is_same.sum()), classes[row]))
        different.append(score[~is_same])
        progress((row + 1) / len(vectors))
    return Compared(
        np.concatenate(same), np.concatenate(same_class), np.sort(np.concatenate(different))
    )


def rows_of_pairs(
    vectors: np.ndarray, classes: np.ndarray, similarity: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each image: its scores with every later one, and which of them are of its class."""
    for row in range(len(vectors)):
        score = scores(vectors[row : row + 1], vectors[None, row + 1 :], similarity)[0]
        yield score, classes[row + 1 :] == classes[row]


def counts(pairs: Compared) -> PairCounts:
    """Where the pairs of one class stand among the others."""
    levels, hits = np.unique(pairs.same, return_counts=True)
    above = len(pairs.different) - np.searchsorted(pairs.different, levels, "right")
    least = len(pairs.different) - np.searchsorted(pairs.different, levels, "left")
    return PairCounts(hits, above, least - above, len(pairs.different))


def intervals_over_classes(
    vectors: np.ndarray,
    classes: np.ndarray,
    similarity: str,
    threshold: np.float32,
    pairs: Compared,
    seed: int,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of both rates at a threshold, whole classes drawn with replacement."""
    count = int(classes.max()) + 1
    first, second = [], []
    for row, (score, is_same) in enumerate(rows_of_pairs(vectors, classes, similarity)):
        false = np.flatnonzero(~is_same & (score >= threshold)) + row + 1
        first.append(np.full(len(false), classes[row]))
        second.append(classes[false])
    one, other = np.concatenate(first), np.concatenate(second)
    sizes = np.bincount(classes, minlength=count).astype(np.float64)
    of_class = np.bincount(pairs.same_class, minlength=count).astype(np.float64)
    missed = np.bincount(pairs.same_class[pairs.same < threshold], minlength=count)
    rng = np.random.default_rng(seed)
    false_rates, missed_rates = [], []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        images = times * sizes
        # A class that is drawn twice is still one class: its copies make no pairs of different ones.
        different = (images.sum() ** 2 - (images**2).sum()) / 2
        if different:
            false_rates.append((times[one] * times[other]).sum() / different)
        if times @ of_class:
            missed_rates.append(times @ missed / (times @ of_class))
    return interval(false_rates), interval(missed_rates)


def interval(values: list[float]) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
