"""`evaluate`: metrics of embeddings, exact and in bounded memory.

The protocol is in docs/protocol.md, the names of the metrics in `names`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dml.evaluation.clusters import cluster
from dml.evaluation.inputs import Array, Inputs, checked, one_of
from dml.evaluation.names import FAMILIES, Metric, parse
from dml.evaluation.neighbours import Layout, Search, layout
from dml.evaluation.pairs import Pairs, Progress
from dml.evaluation.ranks import Depth
from dml.evaluation.result import Result
from dml.evaluation.scores import SIMILARITIES, Scorer, full_precision

DEFAULT_METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision")
BACKENDS = ("faiss", "torch")
AVERAGES = ("micro", "macro")
LARGE = 20_000  # benchmarks/evaluation.py: with 6,000 items faiss is the faster, with 60,000 torch by half


def evaluate(
    query: Array,
    query_labels: Array,
    gallery: Array | None = None,
    gallery_labels: Array | None = None,
    *,
    query_ids: Array | None = None,
    gallery_ids: Array | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    backend: Literal["auto", "faiss", "torch"] = "auto",
    similarity: Literal["cosine", "dot", "euclidean"] = "cosine",
    average: Literal["micro", "macro"] = "micro",
    memory: int = 1 << 30,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Metrics of embeddings: name -> value.

    query [q, d], gallery [g, d]: embeddings, tensors or arrays of real numbers; computed in float32.
    query_labels [q], gallery_labels [g]: integers, the full range of int64.
    gallery=None: the queries against themselves, each excluded from its own results.
    query_ids [q], gallery_ids [g]: integers or strings, unique within each set. A gallery item with
    the query's id is excluded from that query's results. Without ids (and with a gallery) nothing is.
    metrics: names, for example recall@k, map@r, auc, nmi, uniformity; all are in docs/protocol.md.
    backend: "faiss" (CPU) or "torch" (where the query tensor lies, CPU or GPU); equal results. "auto"
    takes the faster, see `faster_backend`.
    similarity: "cosine" normalises, "dot" and "euclidean" take the embeddings as they are.
    average: "micro", the mean over the queries that have a positive, or "macro", the mean over classes
    of the means over their queries. Metrics of the whole set (auc, nmi ...) have no average.
    memory: bytes for the search, above the embeddings and one prepared float32 copy of them (one more
    for clusterings, and for diagnostics where the similarity is not the cosine).
    progress: called now and then with the share that is done, in (0, 1].

    Exact: ties are averaged over their orders, so the values do not depend on the order of the data.
    Random state, thread settings and autograd are untouched.
    Raises ValueError for input that cannot be evaluated, saying what and where.
    """
    return evaluate_detailed(
        query,
        query_labels,
        gallery,
        gallery_labels,
        query_ids=query_ids,
        gallery_ids=gallery_ids,
        metrics=metrics,
        backend=backend,
        similarity=similarity,
        average=average,
        memory=memory,
        progress=progress,
    ).metrics


def evaluate_detailed(
    query: Array,
    query_labels: Array,
    gallery: Array | None = None,
    gallery_labels: Array | None = None,
    *,
    query_ids: Array | None = None,
    gallery_ids: Array | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    backend: Literal["auto", "faiss", "torch"] = "auto",
    similarity: Literal["cosine", "dot", "euclidean"] = "cosine",
    average: Literal["micro", "macro"] = "micro",
    memory: int = 1 << 30,
    progress: Progress | None = None,
) -> Result:
    """`evaluate` with counts, per-query values and a table of classes; the arguments are the same."""
    names = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(metrics))
    if not names:
        raise ValueError("metrics is empty; ask for at least one, for example recall@1")
    parsed = {name: parse(name) for name in names}
    one_of("backend", backend, ("auto", *BACKENDS))
    if backend == "auto":
        backend = faster_backend(query, alone=gallery is None)
    one_of("similarity", similarity, SIMILARITIES)
    one_of("average", average, AVERAGES)
    if not isinstance(memory, int) or memory <= 0:
        raise ValueError(f"memory={memory!r} must be a positive number of bytes")
    device = torch.device("cpu")
    if backend == "torch" and isinstance(query, Tensor):
        device = query.device
    inputs = checked(query, query_labels, gallery, gallery_labels, query_ids, gallery_ids, device)
    groups = layout(inputs.query_labels, inputs.gallery_labels, inputs.self_column)
    if not groups.relevant.any():
        raise ValueError(
            f"none of the {len(inputs.query)} queries has a positive in the gallery: "
            "no metric is defined. Are query and gallery labels numbered alike?"
        )

    with full_precision(device):
        per_query, found = _values(parsed, inputs, groups, backend, similarity, memory, progress)
    found |= {
        name: mean_of(values, inputs.query_labels, average) for name, values in per_query.items()
    }
    relevant = np.empty(len(inputs.query), dtype=np.int64)
    relevant[groups.query_order] = groups.relevant
    lone = int((relevant == 0).sum())
    return Result(
        metrics={name: found[name] for name in names},
        per_query=per_query,
        ids=inputs.ids,
        labels=inputs.query_labels,
        relevant=relevant,
        num_queries=len(relevant),
        lone_queries=lone,
        gallery_size=inputs.gallery_size,
        similarity=similarity,
        backend=backend,
        protocol=_protocol(inputs, lone, similarity, average),
    )


def _values(
    parsed: Mapping[str, Metric],
    inputs: Inputs,
    groups: Layout,
    backend: str,
    similarity: str,
    memory: int,
    progress: Progress | None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(name -> value of each query, name -> value of the whole set); each metric is in one of them."""
    wanted = {
        family: {name: metric for name, metric in parsed.items() if metric.family == family}
        for family in FAMILIES
    }
    stage = _stages(progress, sum(map(bool, wanted.values())))
    device = inputs.query.device
    query_rows = (inputs.query, torch.from_numpy(groups.query_order).to(device))
    gallery_rows = None
    if inputs.gallery is not None:
        gallery_rows = (inputs.gallery, torch.from_numpy(groups.gallery_order).to(device))
    scorer = Scorer(query_rows, gallery_rows, similarity)
    per_query, found = {}, {}
    if asked := wanted["ranks"]:
        per_query = _rank_metrics(asked, scorer, groups, backend, memory, next(stage))
    if asked := wanted["verification"]:
        counts = Pairs(scorer, groups, memory, next(stage)).counts()
        found |= {name: metric.compute(counts) for name, metric in asked.items()}
    if asked := wanted["clusters"]:
        next(stage)
        clustering = cluster(scorer.query.values.cpu().numpy(), groups.query_class)
        found |= {name: metric.compute(clustering) for name, metric in asked.items()}
    if asked := wanted["diagnostics"]:
        if similarity != "cosine":
            scorer = Scorer(query_rows, gallery_rows, "cosine")
        pairs = Pairs(scorer, groups, memory, next(stage))
        found |= {name: metric.compute(pairs) for name, metric in asked.items()}
    if progress is not None:
        progress(1.0)
    return per_query, found


def _rank_metrics(
    metrics: Mapping[str, Metric],
    scorer: Scorer,
    groups: Layout,
    backend: str,
    memory: int,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Name -> float64 [q] in the caller's order."""
    depths = [metric.depth for metric in metrics.values() if metric.depth]
    size = len(scorer.gallery)
    depth = Depth(
        best=min(size, max(d.best for d in depths)),
        others=min(size, max(d.others for d in depths)),
        relevant=any(d.relevant for d in depths),
    )
    order = groups.query_order
    values = {name: np.full(len(order), metric.lone) for name, metric in metrics.items()}
    search = Search(scorer, groups, depth, backend, memory)
    for part in search.chunks():
        kept = order[part][groups.relevant[part] > 0]
        if len(kept):
            ranks = search.ranks(part, _part(progress, part.start, part.stop, len(order)))
            for name, metric in metrics.items():
                values[name][kept] = metric.compute(ranks)
    progress(1.0)
    return values


def faster_backend(query: Array, alone: bool) -> Literal["faiss", "torch"]:
    """torch on a GPU, and where LARGE items or more are compared among themselves; else faiss.

    alone: there is no gallery apart, so that one product of torch's serves two queries.
    """
    on_gpu = isinstance(query, Tensor) and query.is_cuda
    return "torch" if on_gpu or (alone and len(query) >= LARGE) else "faiss"


def mean_of(values: np.ndarray, labels: np.ndarray, average: str) -> float:
    """The mean of the values that are not nan (micro), or of the means of their classes (macro)."""
    counted = ~np.isnan(values)
    values = values[counted]
    if average == "macro":
        _, codes, sizes = np.unique(labels[counted], return_inverse=True, return_counts=True)
        # sorted, so that not even the order within a class can matter
        order = np.lexsort((values, codes))
        values = np.add.reduceat(values[order], np.cumsum(sizes) - sizes) / sizes
    return math.fsum(values) / len(values)  # rounded once: the order of the queries cannot matter


def _stages(progress: Progress | None, count: int) -> Iterator[Progress]:
    """One callable per stage of the evaluation, each for its share of the whole."""
    for stage in range(count):
        yield _part(progress or (lambda share: None), stage, stage + 1, count)


def _part(progress: Progress, start: int, stop: int, total: int) -> Progress:
    return lambda share: progress((start + share * (stop - start)) / total)


def _protocol(inputs: Inputs, lone: int, similarity: str, average: str) -> str:
    excluded = int((inputs.self_column >= 0).sum())
    against = f"a gallery of {inputs.gallery_size}" if inputs.gallery is not None else "each other"
    over = "queries" if average == "micro" else "classes"
    return (
        f"{len(inputs.query)} queries against {against}, {excluded} excluded from their own results "
        f"by id; {lone} without a positive left out; {similarity} similarity of float32 embeddings, "
        f"exact search; ties averaged over their orders; mean over {over}"
    )
