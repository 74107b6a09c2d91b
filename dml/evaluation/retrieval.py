"""`evaluate`: retrieval metrics of embeddings, exact and in bounded memory.

The protocol is in docs/protocol.md.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dml.evaluation.metrics import parse
from dml.evaluation.neighbours import Search, layout
from dml.evaluation.ranks import Depth
from dml.evaluation.scores import SIMILARITIES, Scorer, full_precision

DEFAULT_METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision")
BACKENDS = ("faiss", "torch")

Array = Tensor | np.ndarray


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    metrics: name -> mean over the queries that have a positive, in [0, 1].
    per_query: name -> float64 [q] in the caller's order, nan for queries without a positive.
    relevant: int64 [q], positives of each query in the gallery.
    num_queries: all queries.  lone_queries: those without a positive, which no metric counts.
    protocol: one line that says how the numbers were made.
    """

    metrics: dict[str, float]
    per_query: dict[str, np.ndarray]
    relevant: np.ndarray
    num_queries: int
    lone_queries: int
    gallery_size: int
    similarity: str
    backend: str
    protocol: str


def evaluate(
    query: Array,
    query_labels: Array,
    gallery: Array | None = None,
    gallery_labels: Array | None = None,
    *,
    query_ids: Array | None = None,
    gallery_ids: Array | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    backend: Literal["faiss", "torch"] = "faiss",
    similarity: Literal["cosine", "dot", "euclidean"] = "cosine",
    memory: int = 1 << 30,
    progress: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Retrieval metrics, averaged over the queries that have a positive.

    query [q, d], gallery [g, d]: embeddings, tensors or arrays of real numbers; computed in float32.
    query_labels [q], gallery_labels [g]: integers, the full range of int64.
    gallery=None: the queries against themselves, each excluded from its own results.
    query_ids [q], gallery_ids [g]: integers or strings, unique within each set. A gallery item with
    the query's id is excluded from that query's results. Without ids (and with a gallery) nothing is.
    metrics: recall@k, precision@k, map@k and ndcg@k for any k, map@r, r_precision, map, ndcg, mrr.
    backend: "faiss" (CPU) or "torch" (where the query tensor lies, CPU or GPU); equal results.
    similarity: "cosine" normalises, "dot" and "euclidean" take the embeddings as they are.
    memory: bytes for the search, above the embeddings and one prepared float32 copy of them.
    progress: called now and then with the share that is done, in (0, 1].

    Returns name -> value in [0, 1].  Exact: ties are averaged over their orders, so the values do
    not depend on the order of the data.  Random state, thread settings and autograd are untouched.
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
    backend: Literal["faiss", "torch"] = "faiss",
    similarity: Literal["cosine", "dot", "euclidean"] = "cosine",
    memory: int = 1 << 30,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """`evaluate` with counts and per-query values; the arguments are the same."""
    names = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(metrics))
    if not names:
        raise ValueError("metrics is empty; ask for at least one, for example recall@1")
    parsed = {name: parse(name) for name in names}
    _one_of("backend", backend, BACKENDS)
    _one_of("similarity", similarity, SIMILARITIES)
    if not isinstance(memory, int) or memory <= 0:
        raise ValueError(f"memory={memory!r} must be a positive number of bytes")

    device = query.device if isinstance(query, Tensor) else torch.device("cpu")
    if backend == "faiss":
        device = torch.device("cpu")
    query_values = _embeddings("query", query, device)
    query_classes = _labels("query_labels", query_labels, len(query_values), "query")
    gallery_values = gallery_classes = None
    if gallery is not None:
        gallery_values = _embeddings("gallery", gallery, device)
        if gallery_values.shape[1] != query_values.shape[1]:
            raise ValueError(
                f"query has {query_values.shape[1]} dimensions and gallery "
                f"{gallery_values.shape[1]}; both must come from the same encoder"
            )
        if gallery_labels is None:
            raise ValueError("gallery is given without gallery_labels")
        gallery_classes = _labels("gallery_labels", gallery_labels, len(gallery_values), "gallery")
    else:
        for name, value in (("gallery_labels", gallery_labels), ("gallery_ids", gallery_ids)):
            if value is not None:
                raise ValueError(f"{name} is given without gallery")
    self_column = _self_columns(query_ids, gallery_ids, len(query_values), gallery_values)

    groups = layout(query_classes, gallery_classes, self_column)
    if not groups.relevant.any():
        raise ValueError(
            f"none of the {len(query_values)} queries has a positive in the gallery: "
            "no metric is defined. Are query and gallery labels numbered alike?"
        )
    size = len(query_values) if gallery_values is None else len(gallery_values)
    depths = [depth for _, depth in parsed.values()]
    depth = Depth(
        best=min(size, max(d.best for d in depths)),
        others=min(size, max(d.others for d in depths)),
        relevant=any(d.relevant for d in depths),
    )

    values = {name: np.full(len(query_values), np.nan) for name in names}
    order = groups.query_order
    with full_precision(device):
        query_rows = (query_values, torch.from_numpy(groups.query_order).to(device))
        gallery_rows = None
        if gallery_values is not None:
            gallery_rows = (gallery_values, torch.from_numpy(groups.gallery_order).to(device))
        scorer = Scorer(query_rows, gallery_rows, similarity)
        search = Search(scorer, groups, depth, backend, memory)
        for part in search.chunks():
            report = None if progress is None else _share(progress, part, len(order))
            kept = order[part][groups.relevant[part] > 0]
            if not len(kept):
                continue
            ranks = search.ranks(part, report)
            for name, (function, _) in parsed.items():
                values[name][kept] = function(ranks)
    if progress is not None:
        progress(1.0)

    relevant = np.empty(len(order), dtype=np.int64)
    relevant[order] = groups.relevant
    counted = relevant > 0
    lone = int((~counted).sum())
    return Result(
        # fsum rounds once, so that the order of the queries cannot matter
        metrics={name: math.fsum(v[counted]) / int(counted.sum()) for name, v in values.items()},
        per_query=values,
        relevant=relevant,
        num_queries=len(order),
        lone_queries=lone,
        gallery_size=size,
        similarity=similarity,
        backend=backend,
        protocol=_protocol(len(order), lone, size, gallery is None, similarity, self_column),
    )


def _share(progress: Callable[[float], None], part: slice, total: int) -> Callable[[float], None]:
    return lambda share: progress((part.start + share * (part.stop - part.start)) / total)


def _one_of(name: str, value: object, legal: Sequence[str]) -> None:
    if value not in legal:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(legal)}")


def _embeddings(name: str, value: Array, device: torch.device) -> Tensor:
    """Real numbers [n, d] on `device`, checked; float64 stays float64 here."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {array.dtype}, not real numbers")
        native = array.dtype.kind == "f" and array.dtype.itemsize <= 8
        kind = array.dtype.newbyteorder("=") if native else np.float64
        array = np.ascontiguousarray(array, dtype=kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # read-only memory is only read
            value = torch.from_numpy(array)
    elif value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{name} holds {value.dtype}, not real numbers")
    value = value.detach()
    if value.ndim != 2:
        raise ValueError(f"{name} has shape {list(value.shape)}; expected [items, dimensions]")
    if 0 in value.shape:
        raise ValueError(f"{name} is empty: shape {list(value.shape)}")
    value = value.to(device)
    rows = max(1, (1 << 20) // value.shape[1])
    bad = [
        start + (~part.float().isfinite().all(1)).nonzero()[:, 0]
        for start, part in zip(range(0, len(value), rows), value.split(rows), strict=True)
    ]
    bad = torch.cat(bad).tolist()
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(
            f"{name} holds NaN, infinity or numbers beyond float32 in row"
            f"{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad[:5]))}{more}"
        )
    return value


def _labels(name: str, value: Array, length: int, of: str) -> np.ndarray:
    """int64 [length]."""
    array = _vector(name, value, length, of)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype}; labels must be integers")
    return _int64(name, array)


def _int64(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {array.max()}, beyond int64")
    return array.astype(np.int64)


def _vector(name: str, value: Array, length: int, of: str) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {list(array.shape)}; expected one dimension")
    if len(array) != length:
        raise ValueError(f"{name} has {len(array)} entries for {length} rows of {of}")
    return array


def _ids(name: str, value: Array, length: int, of: str) -> np.ndarray:
    array = _vector(name, value, length, of)
    if array.dtype.kind not in "iuUS":
        raise ValueError(f"{name} holds {array.dtype}; ids must be integers or strings")
    if array.dtype.kind in "iu":
        array = _int64(name, array)
    distinct, counts = np.unique(array, return_counts=True)
    if len(distinct) < length:
        twice = distinct[counts > 1][:5].tolist()
        raise ValueError(
            f"{name} must be unique: {length - len(distinct)} repeat, for example {twice[0]!r}"
        )
    return array


def _self_columns(
    query_ids: Array | None, gallery_ids: Array | None, queries: int, gallery: Tensor | None
) -> np.ndarray:
    """For each query the gallery position with its id, or -1; int64 [queries]."""
    if gallery is None:
        if query_ids is not None:
            _ids("query_ids", query_ids, queries, "query")
        return np.arange(queries)
    if query_ids is None and gallery_ids is None:
        return np.full(queries, -1)
    if query_ids is None or gallery_ids is None:
        missing = "query_ids" if query_ids is None else "gallery_ids"
        raise ValueError(f"{missing} is missing: ids are needed for both sets, or for neither")
    left = _ids("query_ids", query_ids, queries, "query")
    right = _ids("gallery_ids", gallery_ids, len(gallery), "gallery")
    if (left.dtype.kind in "iu") != (right.dtype.kind in "iu"):
        raise ValueError(f"query_ids hold {left.dtype} and gallery_ids {right.dtype}")
    return _positions(left, right)


def _positions(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each of `wanted` is in `among`, or -1."""
    order = np.argsort(among, kind="stable")
    place = np.searchsorted(among, wanted, sorter=order)
    candidate = order[np.minimum(place, len(among) - 1)]
    return np.where(among[candidate] == wanted, candidate, -1)


def _protocol(
    queries: int, lone: int, size: int, own: bool, similarity: str, self_column: np.ndarray
) -> str:
    excluded = int((self_column >= 0).sum())
    against = "each other" if own else f"a gallery of {size}"
    return (
        f"{queries} queries against {against}, {excluded} excluded from their own results by id; "
        f"{lone} without a positive left out; {similarity} similarity of float32 embeddings, "
        "exact search; ties averaged over their orders; mean over queries"
    )
