"""Re-ranking: similarities of each query to the whole gallery that no vectors have.

A re-ranking is a function of `Sets` that returns `Similarities`, which `evaluate_similarities` takes.
Neighbour lists hold those that tie with their last too. The graphs are sparse; `MOST` bounds them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import cg
from torch import Tensor

from dml.evaluation.postprocess import Cosines, Sets, kth_best, similarity_tiles

Sparse = Any  # scipy's sparse matrices; it does not type what their products are
# rows -> float32 [rows, g], larger is nearer
Similarities = Callable[[slice], np.ndarray]

MOST = 1 << 25  # entries of a neighbour graph: 400 MB


def k_reciprocal(sets: Sets, k1: int, k2: int, weight: float) -> Similarities:
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017, arXiv:1701.08398), over queries and gallery together.

    N(p, k): p and its k nearest.  R(p, k): those of N(p, k) that have p among theirs.  R*(p): R(p, k1)
    joined with every R(q, k1 / 2), q in R(p, k1), of which two thirds or more lie in R(p, k1) (eq. 3).
    V(p): exp(-d) over R*(p), scaled to sum 1, then averaged over the k2 nearest, p the first (eq. 7, 9).
    Distance: (1 - weight) Jaccard(V(p), V(g)) + weight d(p, g) (eq. 10, 12); returned: minus that.
    d: squared distance of the unit vectors, as a share of p's largest, as in the authors' code.

    Raises ValueError: a query that is also in a gallery apart, or too many ties.
    """
    if sets.gallery is not None and (sets.own >= 0).any():
        raise ValueError(
            "k_reciprocal takes queries and gallery as one set, and here some images are in it twice; "
            "in self-retrieval it cannot follow query_expansion"
        )
    points = sets.query if sets.gallery is None else torch.cat([sets.query, sets.gallery])
    own = np.arange(len(points))
    half = max(1, round(k1 / 2))
    cosines = Cosines(points, points)
    graphs, largest = _graphs(cosines, (k1, half, k2 - 1), sets.memory)
    near, near_half, first = graphs
    reciprocal, reciprocal_half = near.multiply(near.T), near_half.multiply(near_half.T).tocsr()
    sizes = np.asarray(reciprocal_half.sum(1)).ravel()
    shared = reciprocal.multiply(reciprocal @ reciprocal_half.T).tocoo()  # |R(p, k1) & R(q, k1/2)|
    joined = 3 * shared.data >= 2 * sizes[shared.col]
    joined = sparse.csr_matrix(
        (np.ones(joined.sum()), (shared.row[joined], shared.col[joined])), near.shape
    )
    expanded = (reciprocal + joined @ reciprocal_half).tocoo()
    _check_size(expanded.nnz)
    rows, near_columns = (x.astype(np.int64) for x in (expanded.row, expanded.col))
    distance = (2 - 2 * cosines.pairs(rows, near_columns).astype(np.float64)) / largest[rows]
    vectors = _rows_to_one(sparse.csr_matrix((np.exp(-distance), (rows, near_columns)), near.shape))
    vectors = (_rows_to_one(first) @ vectors).tocsr()
    _check_size(vectors.nnz)
    gallery = slice(0 if sets.gallery is None else len(sets.query), len(points))
    columns = vectors[gallery].tocsc()

    def similarities(rows: slice) -> np.ndarray:
        plain = 2 - 2 * cosines.tile(rows)[:, gallery].double().cpu().numpy()
        jaccard = np.stack([_jaccard(vectors[row], columns) for row in own[rows]])
        mixed = (1 - weight) * jaccard + weight * plain / largest[rows, None]
        return -mixed.astype(np.float32)

    return similarities


def diffusion(sets: Sets, neighbours: int, alpha: float, gamma: float) -> Similarities:
    """Diffusion on the gallery's graph (Iscen et al., CVPR 2017, arXiv:1611.05113, sections 3 and 4).

    A: cos^gamma between items that are among each other's nearest, 0 otherwise (their eq. 9).
    S = D^(-1/2) A D^(-1/2).  f solves (I - alpha S) f = y, by conjugate gradients; f ranks the gallery.
    y: 1 at the query where it is in the gallery, else cos^gamma to the query's nearest in it.

    Raises ValueError: too many ties.
    """
    gallery = sets.query if sets.gallery is None else sets.gallery
    count = len(gallery)
    affinity = _affinities(gallery, gallery, np.arange(count), neighbours, gamma, sets.memory)
    affinity = affinity.minimum(affinity.T)
    degree = np.asarray(affinity.sum(1)).ravel()
    scale = sparse.diags(1 / np.sqrt(np.where(degree > 0, degree, 1)))
    system = (sparse.identity(count) - alpha * (scale @ affinity @ scale)).tocsr()
    apart = _affinities(sets.query, gallery, sets.own, neighbours, gamma, sets.memory)
    itself = np.flatnonzero(sets.own >= 0)
    inside = sparse.csr_matrix(
        (np.ones(len(itself)), (itself, sets.own[itself])), (len(sets.query), count)
    )
    start = sparse.diags((sets.own < 0).astype(float)) @ apart + inside

    def similarities(rows: slice) -> np.ndarray:
        found = np.empty((rows.stop - rows.start, count), dtype=np.float32)
        for place, row in enumerate(range(rows.start, rows.stop)):
            found[place], failed = cg(system, start[[row]].toarray()[0], rtol=1e-9)
            if failed:
                raise ValueError(f"diffusion did not converge; alpha={alpha} is too near 1")
        return found

    return similarities


def _graphs(cosines: Cosines, ks: tuple[int, ...], memory: int) -> tuple[list[Sparse], np.ndarray]:
    """N(p, k) for each k as a matrix of 0 and 1 [n, n], p itself included; each p's largest distance."""
    found, largest, count = [[] for _ in ks], [], 0
    for rows, scores in similarity_tiles(cosines, np.arange(cosines.size), memory):
        for parts, k in zip(found, ks, strict=True):
            kept = (
                scores >= kth_best(scores, k) if k else torch.zeros_like(scores, dtype=torch.bool)
            )
            kept[torch.arange(len(kept)), torch.arange(rows.start, rows.stop)] = True
            parts.append(sparse.csr_matrix(kept.cpu().numpy(), dtype=np.float64))
            count += parts[-1].nnz
            _check_size(count)
        least = scores.masked_fill(scores == -torch.inf, 1).amin(1).double().cpu().numpy()
        largest.append(2 - 2 * least)
    whole = np.concatenate(largest)
    graphs: list[Sparse] = [sparse.vstack(parts, format="csr") for parts in found]
    return graphs, np.where(whole > 0, whole, 1)


def _affinities(
    query: Tensor, gallery: Tensor, own: np.ndarray, neighbours: int, gamma: float, memory: int
) -> Sparse:
    """cos^gamma to the nearest in the gallery, [q, g]."""
    parts, count = [], 0
    for _, scores in similarity_tiles(Cosines(query, gallery), own, memory):
        kept = (scores >= kth_best(scores, neighbours)) & (scores > 0)
        weights = scores.double().clamp(min=0).pow(gamma).masked_fill(~kept, 0)
        parts.append(sparse.csr_matrix(weights.cpu().numpy()))
        count += parts[-1].nnz
        _check_size(count)
    return sparse.vstack(parts, format="csr")


def _rows_to_one(matrix: Sparse) -> Sparse:
    return sparse.diags(1 / np.asarray(matrix.sum(1)).ravel()) @ matrix


def _jaccard(vector: Sparse, columns: Sparse) -> np.ndarray:
    """1 - sum of minima / sum of maxima, of one vector and every row of `columns`; all sum to 1."""
    minima = np.zeros(columns.shape[0])
    for column, value in zip(vector.indices, vector.data, strict=True):
        part = slice(columns.indptr[column], columns.indptr[column + 1])
        minima[columns.indices[part]] += np.minimum(value, columns.data[part])
    return 1 - minima / (2 - minima)


def _check_size(entries: int) -> None:
    if entries > MOST:
        raise ValueError(
            f"the graph of neighbours has over {MOST} entries: too many images, too many neighbours, "
            "or embeddings that are all alike"
        )
