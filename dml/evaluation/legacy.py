"""Metrics as some papers' code computes them, to translate their tables; never for new results.

Each is the definition of the project it names, with this package's rules around it: the query is
excluded by id, ties are averaged over their orders, queries without a positive are left out (save
where counting them is the point). R, k: see `metrics`.
"""

import math

import numpy as np

from dml.evaluation.metrics import Cut, Ranked, hits_at_k, precision_sum, recall_at_k
from dml.evaluation.ranks import Ranks


def map_c(ranks: Ranks) -> np.ndarray:
    """mAP_c of Roth et al. (ICML 2020, arXiv:2002.08473; Revisiting_Deep_Metric_Learning_PyTorch).

    MAP@R with the class size, the query included, in place of R: it looks at R + 1 neighbours and
    divides by R + 1. A perfect embedding scores R / (R + 1): 0.5 in classes of two.
    """
    return precision_sum(ranks, ranks.relevant + 1) / (ranks.relevant + 1)


def map_at_k_rdml(ranks: Ranks, k: Cut) -> np.ndarray:
    """mAP_1000 (k = 1000) and mAP_lim (k = 1023) of the same project: map_cut@k over R + 1.

    TensorFlow Similarity's MapAtK is this too when its `r` counts the query with its class.
    """
    return precision_sum(ranks, k) / (ranks.relevant + 1)


def map_at_r_at_k_pml(ranks: Ranks, k: Cut) -> np.ndarray:
    """MAP@R of pytorch-metric-learning's AccuracyCalculator(k=k): hits past k count as misses.

    Equal to map@r where k >= R; below, a perfect embedding scores k / R.
    """
    return precision_sum(ranks, np.minimum(k, ranks.relevant)) / ranks.relevant


def precision_at_k_oml(ranks: Ranks, k: Cut) -> np.ndarray:
    """precision@k of open-metric-learning: hits divided by min(k, R), not by k."""
    return hits_at_k(ranks, k) / np.minimum(k, ranks.relevant)


def map_at_k_oml(ranks: Ranks, k: int) -> np.ndarray:
    """map@k of open-metric-learning 4.0: the sum of precisions divided by the hits there are in the top k.

    One hit at rank 1 scores 1, however many positives are missed. Without a hit it is 0.
    """
    hits = hits_at_k(ranks, k)
    values = precision_sum(ranks, k) / np.where(hits > 0, hits, 1.0)
    # A quotient of expectations is not the expectation where the cut runs through a tie group.
    query = np.repeat(np.arange(len(ranks)), np.diff(ranks.start, append=len(ranks.above)))
    cut = np.flatnonzero((ranks.above < k) & (ranks.above + ranks.tied > k))
    begin = np.zeros(len(ranks), dtype=np.int64)
    begin[query[cut]] = ranks.above[cut]
    settled = precision_sum(ranks, begin)
    for level in cut.tolist():
        values[query[level]] = _map_oml_of_cut(ranks, level, k, float(settled[query[level]]))
    return values


def _map_oml_of_cut(ranks: Ranks, level: int, k: int, settled: float) -> float:
    """map@k of a query whose tie group `level` the cut runs through; settled: the sum above the group.

    Given h hits among the m places seen, each of these holds one with probability h/m, and the s - 1
    places before it in the group hold (s - 1) (h - 1) / (m - 1) on average.
    """
    above, tied, hits, before = (
        int(a[level]) for a in (ranks.above, ranks.tied, ranks.hits, ranks.before)
    )
    seen = k - above
    h = np.arange(min(seen, hits) + 1)
    ways = [math.comb(hits, i) * math.comb(tied - hits, seen - i) for i in h.tolist()]
    chance = np.array([way / math.comb(tied, seen) for way in ways])
    place = np.arange(1, seen + 1)[:, None]
    others = (place - 1) * (h - 1) / max(seen - 1, 1)
    share = (h / seen * (before + 1 + others) / (above + place)).sum(0)
    value = (settled + share) / np.maximum(before + h, 1)
    return float((chance * value).sum())


def recall_optimistic_at_k(ranks: Ranks, k: Cut) -> np.ndarray:
    """Recall@K of Proxy-Anchor (In-Shop) and Deep_metric: fewer than k negatives *above* the best positive.

    Negatives that tie with it do not count, so a collapsed model scores 1.
    """
    return (ranks.above[ranks.start] < k).astype(np.float64)


LEGACY = {
    "legacy/map_c": Ranked(map_c, "all"),
    "legacy/map@k_rdml": Ranked(map_at_k_rdml, "all"),
    "legacy/map@r@k_pml": Ranked(map_at_r_at_k_pml, "all"),
    "legacy/map@k_oml": Ranked(map_at_k_oml, "all"),
    "legacy/precision@k_oml": Ranked(precision_at_k_oml, "all"),
    "legacy/recall_optimistic@k": Ranked(recall_optimistic_at_k, "best"),
    # Roth et al., Proxy-Anchor (CUB, Cars, SOP), dml_cross_entropy: lone queries count as misses.
    "legacy/recall_lone_missed@k": Ranked(recall_at_k, "best", lone=0.0),
}
