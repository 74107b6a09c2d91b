"""Stored vectors, and how they are compared."""

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 1 << 16  # rows at a time
GATHER = 1 << 24  # numbers gathered at a time: 64 MB


class Vectors:
    """The rows of several float32 arrays [n, dim], mapped from files, numbered through."""

    def __init__(self, arrays: Sequence[np.ndarray], dim: int):
        self.arrays, self.dim = list(arrays), dim
        self.starts = np.cumsum([0, *(len(array) for array in self.arrays)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, dim] of the rows [n]."""
        if len(self.arrays) == 1:
            return self.arrays[0][rows]
        found = np.empty((len(rows), self.dim), dtype=np.float32)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(which):
            here = which == number
            found[here] = self.arrays[number][rows[here] - self.starts[number]]
        return found

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(row numbers [b], vectors [b, dim]) of the rows given, or of all, a block at a time."""
        if rows is not None:
            for start in range(0, len(rows), BLOCK):
                part = rows[start : start + BLOCK]
                yield part, self.take(part)
            return
        for begin, array in zip(self.starts, self.arrays, strict=False):
            for start in range(0, len(array), BLOCK):
                part = array[start : start + BLOCK]
                yield np.arange(begin + start, begin + start + len(part)), part


def prepared(embeddings: np.ndarray, similarity: str) -> np.ndarray:
    """Embeddings as they are stored: float32, of length 1 where cosines are compared.

    A zero vector has no direction and stays zero, at a cosine of 0 to everything.
    """
    vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
    if similarity != "cosine":
        return vectors
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)


def scores(queries: np.ndarray, vectors: np.ndarray, similarity: str) -> np.ndarray:
    """float32 [q, k]: each query [q, dim] with its own vectors [q, k, dim]; larger is nearer.

    Summed row by row in one order, so that a pair has the same score whatever it is computed beside.
    """
    if similarity == "euclidean":
        apart = vectors - queries[:, None]
        return 0.0 - np.sqrt(np.einsum("qkd,qkd->qk", apart, apart))  # never -0.0
    return np.einsum("qkd,qd->qk", vectors, queries)


def exact_candidates(
    queries: np.ndarray, vectors: Vectors, similarity: str, k: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """int64 [q, k]: the nearest of the given rows, or of all, by comparison with every one; -1: no more."""
    import faiss

    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    best = np.full((len(queries), 0), 0, dtype=np.float32)
    found = np.full((len(queries), 0), -1, dtype=np.int64)
    for numbers, block in vectors.blocks(rows):
        near, items = faiss.knn(queries, block, min(k, len(block)), metric=metric)
        near = -near if similarity == "euclidean" else near
        best = np.concatenate([best, near], axis=1)
        found = np.concatenate([found, numbers[items]], axis=1)
        if best.shape[1] > k:
            kept = np.argpartition(-best, k - 1, axis=1)[:, :k]
            best = np.take_along_axis(best, kept, axis=1)
            found = np.take_along_axis(found, kept, axis=1)
    if found.shape[1] < k:
        found = np.pad(found, ((0, 0), (0, k - found.shape[1])), constant_values=-1)
    return found
