"""The embeddings of a split in two dimensions: PCA, and UMAP where it is installed."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from dml.embedding_files import Embedded

LIMIT = 2000  # points on a map
LEAST_OF_CLASS = 20  # images of a class on a map that cannot show all
UMAP_LEAST = 16  # points; UMAP looks at 15 neighbours of each


@dataclass(frozen=True)
class Projection:
    """Two numbers an item.

    name: as a person is shown it.  told: how it was made, as a sentence.  points: float64 [n, 2].
    """

    name: str
    told: str
    points: np.ndarray


def sample(labels: np.ndarray, seed: int, limit: int = LIMIT) -> np.ndarray:
    """Which items to show, ascending: all, or at most `limit`.

    Classes are drawn rather than images, so that classes show as groups: whole ones, or where they are
    large LEAST_OF_CLASS images of each or more.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(labels))
    most = max(LEAST_OF_CLASS, limit // len(classes))
    chosen: list[np.ndarray] = []
    room = limit
    for label in classes:
        of_class = np.flatnonzero(labels == label)
        of_class = rng.permutation(of_class)[: min(most, room)]
        chosen.append(of_class)
        room -= len(of_class)
        if room == 0:
            break
    return np.sort(np.concatenate(chosen))


def directions(embedded: Embedded) -> np.ndarray:
    """Embeddings as they are compared, float64 [n, d]: of length 1 where their cosine counts."""
    vectors = embedded.embeddings.astype(np.float64)
    if embedded.similarity != "cosine":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def pca(embedded: Embedded, shown: np.ndarray) -> Projection:
    """The two directions in which all the embeddings vary most; shown: rows that are wanted.

    Each direction's sign is such that its largest weight is positive, so that it is always the same one.
    """
    vectors = directions(embedded)
    vectors -= vectors.mean(0)
    variances, axes = np.linalg.eigh(vectors.T @ vectors / max(1, len(vectors) - 1))
    variances, axes = variances[::-1], axes[:, ::-1][:, :2]
    if axes.shape[1] == 1:  # embeddings of one dimension
        axes = np.concatenate([axes, np.zeros_like(axes)], axis=1)
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    total = variances.clip(0).sum()
    share = variances[:2].clip(0).sum() / total if total > 0 else 0.0
    told = (
        f"PCA: the two directions of greatest variance of all {len(embedded):,} embeddings; they hold "
        f"{share:.0%} of it, so much of what tells classes apart is not seen here."
    )
    return Projection("PCA", told, vectors[shown] @ axes)


def umap_installed() -> bool:
    """Whether `umap` can be had; without it a map is PCA alone."""
    return find_spec("umap") is not None


def umap(embedded: Embedded, shown: np.ndarray, seed: int) -> Projection:
    """UMAP (McInnes, Healy & Melville, arXiv:1802.03426) of the rows `shown`, UMAP_LEAST or more."""
    metric = "cosine" if embedded.similarity == "cosine" else "euclidean"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="umap.*")
        warnings.filterwarnings("ignore", module="sklearn.*")
        from umap import UMAP

        reducer = UMAP(n_neighbors=15, min_dist=0.1, metric=metric, random_state=seed, n_jobs=1)
        points = np.asarray(reducer.fit_transform(embedded.embeddings[shown]), dtype=np.float64)
    told = (
        f"UMAP of {metric} distances (15 neighbours, seed {seed}): it keeps neighbourhoods; distances "
        "between groups and the sizes of groups mean little."
    )
    return Projection("UMAP", told, points)
