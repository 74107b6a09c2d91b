"""`evaluate` for similarities that come from no vectors, such as those of a re-ranking."""

from collections.abc import Callable, Sequence

import numpy as np

from dml.evaluation.names import parse
from dml.evaluation.ranks import Ranks
from dml.evaluation.retrieval import mean_of

ROW_BYTES = 64  # per similarity: the values, their order, their sorted copies, masks


def evaluate_similarities(
    similarities: Callable[[slice], np.ndarray],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray,
    *,
    metrics: Sequence[str],
    average: str = "micro",
    memory: int = 1 << 28,
    progress: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Metrics of rankings: name -> value, by the definitions of `evaluate`; ties are averaged.

    similarities: rows -> real numbers [rows, g], larger is nearer; called with consecutive slices that
    cover the queries, as many rows as fit into `memory` bytes.  query_labels [q], gallery_labels [g]:
    int64.  own: int64 [q], the gallery position that is the query itself and is left out, or -1.
    metrics: those of rankings (recall@k, map@r ...).  average: as for `evaluate`.

    Raises ValueError: a metric of vectors, NaN, or no query with a positive.
    """
    parsed = {name: parse(name) for name in metrics}
    if vectors := [name for name, metric in parsed.items() if metric.family != "ranks"]:
        raise ValueError(f"{', '.join(vectors)}: a re-ranking has no vectors, only rankings")
    values = {name: np.full(len(query_labels), metric.lone) for name, metric in parsed.items()}
    step = max(1, memory // ROW_BYTES // len(gallery_labels))
    lone = True
    for start in range(0, len(query_labels), step):
        rows = slice(start, min(start + step, len(query_labels)))
        positive = query_labels[rows, None] == gallery_labels
        here = np.flatnonzero(own[rows] >= 0)
        positive[here, own[rows][here]] = False
        kept = np.flatnonzero(positive.any(1))
        if len(kept):
            lone = False
            scores = np.array(similarities(rows), dtype=np.float64)
            if not np.isfinite(scores).all():
                raise ValueError("similarities hold NaN or infinity")
            scores[here, own[rows][here]] = -np.inf
            ranks = _ranks(scores[kept], positive[kept])
            for name, metric in parsed.items():
                values[name][start + kept] = metric.compute(ranks)
        if progress is not None:
            progress(rows.stop / len(query_labels))
    if lone:
        raise ValueError("no query has a positive in the gallery: no metric is defined")
    return {name: mean_of(found, query_labels, average) for name, found in values.items()}


def _ranks(scores: np.ndarray, positive: np.ndarray) -> Ranks:
    """Ranks from all similarities; those at -inf are left out. Every row has a positive."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=1)
    hit = np.take_along_axis(positive, order, axis=1)
    starts = np.ones(scores.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    at = np.flatnonzero(starts)
    row, above = np.divmod(at, scores.shape[1])
    hits = np.add.reduceat(hit.ravel().astype(np.int64), at)
    relevant = positive.sum(1)
    before = hits.cumsum() - hits - (relevant.cumsum() - relevant)[row]
    tied = np.diff(at, append=scores.size)
    kept = hits > 0
    return Ranks(
        start=np.searchsorted(row[kept], np.arange(len(scores))),
        above=above[kept],
        tied=tied[kept],
        hits=hits[kept],
        before=before[kept],
        relevant=relevant,
        gallery=(scores > -np.inf).sum(1),
    )
