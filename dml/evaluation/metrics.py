"""Retrieval metrics as functions of where the positives stand (`Ranks`).

Items of equal similarity have no order. Every metric here is its expected value when each group of
tied items is shuffled uniformly, in closed form. For a tie group that begins after `above` items and
holds T items, P of them positive, a positive stands at each of its T positions with probability P/T.

Notation: R, the positives of a query; k, the number of results looked at.  Each function returns
float64 [n], one value in [0, 1] per query.  Positions past the end of the gallery hold nothing: they
are misses for precision, and recall is 1 from there on.
"""

from collections.abc import Callable
from math import nan
from typing import NamedTuple

import numpy as np

from dml.evaluation.ranks import Ranks

Cut = int | np.ndarray


def recall_at_k(ranks: Ranks, k: Cut) -> np.ndarray:
    """Probability that at least one of the k nearest is a positive.

    Only the best tie group counts. Of its T places the first m = k - above are looked at; all miss
    with probability C(T - P, m) / C(T, m).
    """
    above, tied, hits = (a[ranks.start] for a in (ranks.above, ranks.tied, ranks.hits))
    seen = np.clip(k - above, 0, tied)
    missed = np.ones(len(ranks))
    # The quotient is a product of min(m, P) factors; the two forms are equal.
    few, many = np.minimum(seen, hits), np.maximum(seen, hits)
    todo = np.flatnonzero(few)
    step = 0
    while len(todo):
        missed[todo] *= np.maximum(tied[todo] - many[todo] - step, 0) / (tied[todo] - step)
        step += 1
        todo = todo[(few[todo] > step) & (missed[todo] > 0)]
    return np.where(few == 1, many / tied, 1 - missed)  # the same for one factor, without rounding


def precision_at_k(ranks: Ranks, k: Cut) -> np.ndarray:
    """Share of positives among the k nearest; always divided by k."""
    return hits_at_k(ranks, k) / k


def r_precision(ranks: Ranks) -> np.ndarray:
    """Precision at k = R."""
    return hits_at_k(ranks, ranks.relevant) / ranks.relevant


def map_at_r(ranks: Ranks) -> np.ndarray:
    """MAP@R (Musgrave et al., ECCV 2020, arXiv:2003.08505): (1/R) sum of precision@i over hits i <= R."""
    return precision_sum(ranks, ranks.relevant) / ranks.relevant


def map_at_k(ranks: Ranks, k: Cut) -> np.ndarray:
    """Sum of precision@i over hits i <= k, divided by min(k, R), the most hits there can be."""
    return precision_sum(ranks, k) / np.minimum(k, ranks.relevant)


def mean_average_precision(ranks: Ranks) -> np.ndarray:
    """Average precision over the whole ranking: precision@i at each positive, averaged over R."""
    return precision_sum(ranks, ranks.gallery) / ranks.relevant


def map_cut_at_k(ranks: Ranks, k: Cut) -> np.ndarray:
    """Sum of precision@i over hits i <= k, divided by R: trec_eval's map_cut."""
    return precision_sum(ranks, k) / ranks.relevant


def mrr(ranks: Ranks) -> np.ndarray:
    """1 / position of the first positive."""
    first = ranks.start
    return _mean_over_places(
        lambda place, above, tied, hits: 1 / (above + place),
        *(a[first] for a in (ranks.above, ranks.tied, ranks.hits)),
    )


def minp(ranks: Ranks) -> np.ndarray:
    """R / position of the last positive: mINP (Ye et al., TPAMI 2021, arXiv:2001.04193).

    Seen from the end of its tie group, the last positive stands where the first does from the front.
    """
    last = np.append(ranks.start[1:], len(ranks.above)) - 1
    return _mean_over_places(
        lambda place, above, tied, hits, relevant: relevant / (above + tied + 1 - place),
        *(a[last] for a in (ranks.above, ranks.tied, ranks.hits)),
        ranks.relevant,
    )


def ndcg_at_k(ranks: Ranks, k: Cut) -> np.ndarray:
    """Sum of 1 / log2(1 + i) over hits i <= k, divided by its largest possible value."""
    size = int(ranks.gallery.max())
    discount = 1 / np.log2(np.arange(2, size + 2))
    total = np.concatenate([[0.0], np.cumsum(discount)])
    seen = _seen(ranks, k)
    last = np.minimum(ranks.above, size - 1)  # levels past the depth may say anything
    gain = np.where(seen == 1, discount[last], total[np.minimum(last + seen, size)] - total[last])
    gain = np.add.reduceat(ranks.hits / ranks.tied * gain, ranks.start)
    best = np.minimum(k, ranks.relevant)
    # Summed as `gain` is, so that a perfect ranking gives 1 exactly.
    start = np.cumsum(best) - best
    place = np.arange(best.sum()) - np.repeat(start, best)
    return gain / np.add.reduceat(discount[place], start)


def ndcg(ranks: Ranks) -> np.ndarray:
    """nDCG over the whole ranking."""
    return ndcg_at_k(ranks, ranks.gallery)


def hits_at_k(ranks: Ranks, k: Cut) -> np.ndarray:
    """Expected number of positives among the k nearest."""
    return np.add.reduceat(ranks.hits * _seen(ranks, k) / ranks.tied, ranks.start)


def precision_sum(ranks: Ranks, k: Cut) -> np.ndarray:
    """Expected sum of precision@i over the hits i <= k.

    In a tie group with H positives before it, place s (position above + s) holds a positive with
    probability P/T; given that, the s - 1 places before it hold (s - 1) (P - 1) / (T - 1) positives
    on average. Its share is P/T (H + 1 + (s - 1) b) / (above + s), b = (P - 1) / (T - 1). Summed over
    s = 1..S with (s - 1) / (above + s) = 1 - (above + 1) / (above + s):
    P/T (b S + (H + 1 - b (above + 1)) (harmonic(above + S) - harmonic(above))).
    """
    seen = _seen(ranks, k)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(ranks.gallery.max()) + 1))])
    above = np.minimum(ranks.above, len(harmonic) - 1)  # levels past the depth may say anything
    rise = harmonic[np.minimum(above + seen, len(harmonic) - 1)] - harmonic[above]
    slope = (ranks.hits - 1) / np.maximum(ranks.tied - 1, 1)
    many = slope * seen + (ranks.before + 1 - slope * (above + 1)) * rise
    one = (ranks.before + 1) / (above + 1)  # the same for S = 1, without rounding where it is 1
    share = np.where(seen == 1, one, many) * (ranks.hits / ranks.tied)
    return np.add.reduceat(np.where(seen > 0, share, 0.0), ranks.start)


def _seen(ranks: Ranks, k: Cut) -> np.ndarray:
    """How many places of each tie group lie within the k nearest."""
    k = np.broadcast_to(k, len(ranks))
    per_level = np.repeat(k, np.diff(ranks.start, append=len(ranks.above)))
    return np.clip(per_level - ranks.above, 0, ranks.tied)


def _mean_over_places(value: Callable[..., np.ndarray], *groups: np.ndarray) -> np.ndarray:
    """Mean of value(place, *group) over the places of a tie group's first positive, 1, 2, ...

    groups: above, tied, hits and whatever else `value` takes; int64 [n] each.  The first positive of
    T tied items, P of them positive, is at place x with probability C(T - x, P - 1) / C(T, P).
    """
    _, tied, hits = groups[:3]
    values = value(np.ones_like(tied), *groups)
    mixed = np.flatnonzero(hits < tied)
    distinct, which = np.unique([a[mixed] for a in groups], axis=1, return_inverse=True)
    means = np.empty(distinct.shape[1])
    for i, group in enumerate(distinct.T):
        tied, hits = group[1:3]
        place = np.arange(1, tied - hits + 2)
        # the quotient of the probabilities of places x + 1 and x
        ratio = (tied - place[:-1] - hits + 1) / (tied - place[:-1])
        probability = hits / tied * np.cumprod(np.concatenate([[1.0], ratio]))
        means[i] = (probability * value(place, *group)).sum()
    values[mixed] = means[which.ravel()]
    return values


class Ranked(NamedTuple):
    """A metric of ranks.

    function: of Ranks, and of k where the name has one.  depth: which positives' ranks it needs: the
    "best", "all", or all down to R ("relevant").  lone: its value for a query without a positive; nan
    leaves the query out of the mean.
    """

    function: Callable[..., np.ndarray]
    depth: str
    lone: float = nan


RANKED = {
    "recall@k": Ranked(recall_at_k, "best"),
    "cmc@k": Ranked(recall_at_k, "best"),
    "precision@k": Ranked(precision_at_k, "all"),
    "map@k": Ranked(map_at_k, "all"),
    "map_cut@k": Ranked(map_cut_at_k, "all"),
    "ndcg@k": Ranked(ndcg_at_k, "all"),
    "map@r": Ranked(map_at_r, "relevant"),
    "r_precision": Ranked(r_precision, "relevant"),
    "map": Ranked(mean_average_precision, "all"),
    "ndcg": Ranked(ndcg, "all"),
    "mrr": Ranked(mrr, "best"),
    "minp": Ranked(minp, "all"),
}
