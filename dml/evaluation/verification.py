"""Verification: is this pair of one class? Metrics of all pairs that an evaluation compares, pooled."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class PairCounts:
    """Where the pairs of one class stand among those of different classes.

    same: pairs of one class at each distinct similarity of such pairs.  above, tied: pairs of different
    classes above it and at it; int64 [n].  different: all pairs of different classes.
    """

    same: np.ndarray
    above: np.ndarray
    tied: np.ndarray
    different: int


def auc(pairs: PairCounts) -> float:
    """Area under the ROC curve: the chance that a same pair is nearer than a different one, ties half.

    (Hanley & McNeil, Radiology 1982: the Mann-Whitney statistic.)
    """
    lost = (pairs.same * (pairs.above + pairs.tied / 2)).sum()
    return 1 - float(lost) / (int(pairs.same.sum()) * pairs.different)


def fnmr(pairs: PairCounts, fmr: Fraction) -> float:
    """Share of same pairs refused at the lowest threshold that accepts at most `fmr` of the different ones.

    A pair is accepted at the threshold or above it (ISO/IEC 19795-1: false non-match rate at a false
    match rate). Ties are accepted or refused together: a collapsed model refuses all.
    """
    allowed = math.floor(fmr * pairs.different)
    refused = pairs.above + pairs.tied > allowed
    return float(pairs.same[refused].sum() / pairs.same.sum())


VERIFICATION = {"auc": auc, "fnmr@fmr=x": fnmr}
