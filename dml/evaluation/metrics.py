"""Retrieval metrics as functions of where the positives stand (`Ranks`).

Items of equal similarity have no order. Every metric here is its expected value when each group of
tied items is shuffled uniformly, in closed form. For a tie group that begins after `above` items and
holds T items, P of them positive, a positive stands at each of its T positions with probability P/T.

Notation: R, the positives of a query; k, the number of results looked at.  Each function returns
float64 [n], one value in [0, 1] per query.  Positions past the end of the gallery hold nothing: they
are misses for precision, and recall is 1 from there on.
"""

import re
from collections.abc import Callable
from difflib import get_close_matches

import numpy as np

from dml.evaluation.ranks import Depth, Ranks

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
    return _hits(ranks, k) / k


def r_precision(ranks: Ranks) -> np.ndarray:
    """Precision at k = R."""
    return _hits(ranks, ranks.relevant) / ranks.relevant


def map_at_r(ranks: Ranks) -> np.ndarray:
    """MAP@R (Musgrave et al., ECCV 2020, arXiv:2003.08505): (1/R) sum of precision@i over hits i <= R."""
    return _precisions(ranks, ranks.relevant) / ranks.relevant


def map_at_k(ranks: Ranks, k: Cut) -> np.ndarray:
    """Sum of precision@i over hits i <= k, divided by min(k, R), the most hits there can be."""
    return _precisions(ranks, k) / np.minimum(k, ranks.relevant)


def mean_average_precision(ranks: Ranks) -> np.ndarray:
    """Average precision over the whole ranking: precision@i at each positive, averaged over R."""
    return _precisions(ranks, ranks.gallery) / ranks.relevant


def mrr(ranks: Ranks) -> np.ndarray:
    """1 / position of the first positive.

    Within the best tie group the first positive is at place x with probability
    C(T - x, P - 1) / C(T, P).
    """
    groups = np.stack([a[ranks.start] for a in (ranks.above, ranks.tied, ranks.hits)])
    distinct, which = np.unique(groups, axis=1, return_inverse=True)
    values = np.empty(distinct.shape[1])
    for i, (above, tied, hits) in enumerate(distinct.T):
        place = np.arange(1, tied - hits + 2)
        # the quotient of the probabilities of places x + 1 and x
        ratio = (tied - place[:-1] - hits + 1) / (tied - place[:-1])
        probability = hits / tied * np.cumprod(np.concatenate([[1.0], ratio]))
        values[i] = (probability / (above + place)).sum()
    return values[which.ravel()]


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


def _seen(ranks: Ranks, k: Cut) -> np.ndarray:
    """How many places of each tie group lie within the k nearest."""
    k = np.broadcast_to(k, len(ranks))
    per_level = np.repeat(k, np.diff(ranks.start, append=len(ranks.above)))
    return np.clip(per_level - ranks.above, 0, ranks.tied)


def _hits(ranks: Ranks, k: Cut) -> np.ndarray:
    """Expected number of positives among the k nearest."""
    return np.add.reduceat(ranks.hits * _seen(ranks, k) / ranks.tied, ranks.start)


def _precisions(ranks: Ranks, k: Cut) -> np.ndarray:
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


# name: (function, which positives' ranks it needs: the best, all, or all down to R)
METRICS: dict[str, tuple[Callable, str]] = {
    "recall@k": (recall_at_k, "best"),
    "precision@k": (precision_at_k, "all"),
    "map@k": (map_at_k, "all"),
    "ndcg@k": (ndcg_at_k, "all"),
    "map@r": (map_at_r, "relevant"),
    "r_precision": (r_precision, "relevant"),
    "map": (mean_average_precision, "all"),
    "ndcg": (ndcg, "all"),
    "mrr": (mrr, "best"),
}


def parse(name: str) -> tuple[Callable[[Ranks], np.ndarray], Depth]:
    """The function of a metric's name, and how deep it needs the ranks.

    Names are the keys of METRICS with k a positive whole number: "recall@1", "map@r", "ndcg@10".
    Raises ValueError, naming the nearest legal names.
    """
    everything = np.iinfo(np.int64).max
    match = re.fullmatch(r"(.+)@([1-9][0-9]{0,17})", name) if isinstance(name, str) else None
    key = f"{match[1]}@k" if match else name
    if key not in METRICS or (not match and key.endswith("@k")):
        raise ValueError(_unknown(name))
    function, need = METRICS[key]
    k = int(match[2]) if match else everything
    depth = Depth(
        best=0 if need == "relevant" else k,
        others=k if need == "all" else 0,
        relevant=need == "relevant",
    )
    return (lambda ranks: function(ranks, k)) if match else function, depth


def _unknown(name: object) -> str:
    names = list(METRICS)
    text = str(name)
    known = re.sub(r"@\d+$", "@k", text.lower().strip())
    near = get_close_matches(known, names, n=3, cutoff=0.5) or names
    example = " (k a positive whole number, for example recall@10)"
    return (
        f"unknown metric {text!r}; the nearest are {', '.join(near)}"
        f"{example if any(n.endswith('@k') for n in near) else ''}"
    )
