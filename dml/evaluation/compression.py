"""What smaller codes cost: recall, bytes and speed of embeddings as Faiss stores them.

Everything is fitted on training embeddings. Quality is that of an exact search through the codes, by
`evaluate` (all pairs, ties averaged); only the speed is Faiss's own search's.

- fp16, int8: one number each in half precision, or as one of 256 steps between the least and the
  largest of its dimension in training.
- PQ: product quantiser, one byte per part (Jégou et al., TPAMI 2011); OPQ: after a rotation that was
  fitted to it (Ge et al., CVPR 2013).  Queries stay as they are (asymmetric distances).
- binary: whether each number is above its median in training; ITQ: signs of principal components after
  a rotation that was fitted to them (Gong et al., TPAMI 2013).  Queries and gallery are codes, compared
  by Hamming distance.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from dml.evaluation.retrieval import evaluate

log = logging.getLogger("dml")

METRICS = ("recall@1", "map@r")
CODE_SIZES = (64, 32, 16, 8)  # bytes of PQ, OPQ and ITQ
LEAST_FOR_PQ = 256  # centres of a part, each of which needs a vector
ROTATIONS = 10  # rounds of fitting OPQ's rotation; Faiss's own 50 take minutes at 1,280 dimensions
SEARCHED = 10  # neighbours in the search whose time is taken
TIMED = 1000  # queries in it


@dataclass(frozen=True)
class Row:
    """A way to store embeddings, and what became of the search.

    bytes: per image.  queries_per_second: of Faiss's search of the ten nearest, on this machine with
    this many threads.
    """

    method: str
    bytes: int
    recall_at_1: float
    map_at_r: float
    queries_per_second: float


@dataclass(frozen=True)
class Codec:
    """index: trained by `compress`.  binary: its codes are signs.  kept: what the index only points to."""

    method: str
    index: faiss.Index
    binary: bool = False
    kept: Any = None


def compress(
    query: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None,
    gallery_labels: np.ndarray | None,
    train: np.ndarray,
    progress: Callable[[float], None] | None = None,
) -> list[Row]:
    """One row per method, the uncompressed embeddings first.

    query [q, d], gallery [g, d] (None: the queries, each left out of its own results), train [n, d]:
    float32, compared by their cosine.  Methods that do not fit d or n are left out, and logged.
    """
    query, train = unit(query), unit(train)
    ids = None
    if gallery is None:
        gallery, gallery_labels, ids = query, query_labels, np.arange(len(query))
    else:
        gallery = unit(gallery)
    rows, methods = [], list(codecs(query.shape[1], len(train)))
    for number, codec in enumerate(methods, 1):
        codec.index.train(train)
        seen, stored = decoded(codec, query, gallery)
        metrics = evaluate(
            seen,
            query_labels,
            stored,
            gallery_labels,
            metrics=METRICS,
            similarity="euclidean",
            query_ids=ids,
            gallery_ids=ids,
        )
        speed = queries_per_second(codec, query[:TIMED], gallery)
        size = codec.index.sa_code_size()
        rows.append(Row(codec.method, size, metrics["recall@1"], metrics["map@r"], speed))
        if progress is not None:
            progress(number / len(methods))
    return rows


def codecs(dim: int, train_size: int) -> Iterator[Codec]:
    """All methods for embeddings of `dim` numbers, untrained."""
    yield Codec("float32", faiss.IndexFlatL2(dim))
    yield Codec("fp16", faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16))
    yield Codec("int8", faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit))
    sizes = [size for size in CODE_SIZES if size <= dim and train_size >= LEAST_FOR_PQ]
    if len(sizes) < len(CODE_SIZES):
        log.info("Too few training embeddings or dimensions for some sizes of PQ and OPQ.")
    for size in sizes:
        if dim % size == 0:
            yield Codec(f"PQ{size}", quantiser(dim, size))
        width = min(dim // size, 4) * size  # OPQ reduces to 4 numbers a byte, as Faiss advises
        rotation = faiss.OPQMatrix(dim, size, width)
        rotation.niter = ROTATIONS
        rotation.pq = parts = quantiser(width, size).pq
        index = faiss.IndexPreTransform(rotation, quantiser(width, size))
        yield Codec(f"OPQ{size}", index, kept=parts)
    yield Codec("binary", faiss.IndexLSH(dim, dim, False, True), binary=True)
    for size in CODE_SIZES:
        if 8 * size <= min(dim, train_size - 1):
            itq = faiss.ITQTransform(dim, 8 * size, True)
            signs = faiss.IndexLSH(8 * size, 8 * size, False, False)
            yield Codec(f"ITQ{size}", faiss.IndexPreTransform(itq, signs), binary=True)


def quantiser(dim: int, size: int) -> faiss.IndexPQ:
    """Product quantiser of `size` bytes; its seeds are Faiss's own, fixed ones."""
    index = faiss.IndexPQ(dim, size, 8)
    index.pq.cp.min_points_per_centroid = 1  # Faiss would warn of small sets at each of its k-means
    return index


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32, contiguous."""
    rows = np.array(rows, dtype=np.float32)
    faiss.normalize_L2(rows)
    return rows


def decoded(codec: Codec, query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What queries and gallery are compared as: the stored vectors, or -1 and 1."""
    codes = codec.index.sa_encode(gallery)
    if not codec.binary:
        return query, codec.index.sa_decode(codes)
    return signs(codec.index.sa_encode(query)), signs(codes)


def signs(codes: np.ndarray) -> np.ndarray:
    """Bits [n, bytes] as -1 and 1, float32 [n, 8 bytes]."""
    return np.unpackbits(codes, axis=1, bitorder="little").astype(np.float32) * 2 - 1


def queries_per_second(codec: Codec, query: np.ndarray, gallery: np.ndarray) -> float:
    """Of Faiss's search of the nearest through the codes of the gallery, encoding of queries included."""
    codec.index.reset()
    codec.index.add(gallery)
    count = min(SEARCHED, len(gallery))
    codec.index.search(query[:10], count)
    start = time.perf_counter()
    codec.index.search(query, count)
    return len(query) / (time.perf_counter() - start)
