"""Clustering metrics: k-means of the queries' embeddings, compared with their classes.

k-means finds a local optimum, so its metrics depend on the starting points. Here: Faiss, as many
clusters as classes, ITERATIONS iterations from one start drawn with a fixed seed among all items
(no subsample), items in an order that depends on their values alone.
"""

from typing import NamedTuple

import numpy as np

ITERATIONS = 20  # as Roth et al. (2020) and pytorch-metric-learning
SEED = 1234


class Clustering(NamedTuple):
    """classes, clusters: int64 [n], numbered from 0."""

    classes: np.ndarray
    clusters: np.ndarray


def cluster(values: np.ndarray, labels: np.ndarray) -> Clustering:
    """k-means of `values`, float32 [n, d], into as many clusters as there are distinct `labels` [n]."""
    import faiss

    distinct, classes = np.unique(labels, return_inverse=True)
    rows = np.ascontiguousarray(values)
    order = np.argsort(rows.view(f"V{rows.itemsize * rows.shape[1]}")[:, 0], kind="stable")
    rows = rows[order]
    kmeans = faiss.Kmeans(
        rows.shape[1],
        len(distinct),
        niter=ITERATIONS,
        seed=SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),  # fewer would be a silent subsample
    )
    kmeans.train(rows)
    clusters = np.empty(len(rows), dtype=np.int64)
    clusters[order] = kmeans.assign(rows)[1]
    return Clustering(classes, clusters)


def nmi(found: Clustering) -> float:
    """Normalised mutual information: I(classes; clusters) over the mean of the two entropies."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*found))


def ami(found: Clustering) -> float:
    """Adjusted mutual information: NMI with the mutual information expected by chance taken off both.

    (Vinh et al., JMLR 2010.)  About 0 for a random clustering, which NMI is not; may be below 0.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(*found))


def f1(found: Clustering) -> float:
    """F1 of pairs of items: together in a cluster, as a guess of together in a class.

    (Song et al., CVPR 2017, arXiv:1612.01213.)  2 TP / (pairs in a cluster + pairs in a class).
    """
    cells = found.classes * (found.clusters.max() + 1) + found.clusters

    def pairs(codes: np.ndarray) -> int:
        sizes = np.unique(codes, return_counts=True)[1]
        return int((sizes * (sizes - 1) // 2).sum())

    together = pairs(found.classes) + pairs(found.clusters)
    return 2 * pairs(cells) / together if together else 1.0


CLUSTERS = {"nmi": nmi, "ami": ami, "f1": f1}
