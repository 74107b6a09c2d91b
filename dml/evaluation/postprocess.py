"""What may be done to embeddings after the encoder and before the search.

Every step is a pure function of `Sets` that returns `Sets`; steps compose in any order. Embeddings are
compared by their cosine: each step takes rows of any length as their directions and returns unit rows.
Nothing is fitted on the images that are evaluated: what is fitted is fitted on training embeddings.

Where a step looks at the k nearest, it takes those that tie with the last of them too, so that nothing
depends on the order of the data. Similarities are the evaluation's own, exact (`scores.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dml.evaluation.scores import Scorer, full_precision

# Bytes a tile takes per similarity: the float64 product, its float32 copy, masks and weights.
TILE_BYTES = 48


@dataclass(frozen=True)
class Sets:
    """Queries and what they are compared with.

    query: [q, d] real numbers.  gallery: [g, d], or None: the queries themselves.  own: int64 [q], the
    gallery position that is the query itself, or -1.  train: [n, d], embeddings of training images by
    the same encoder, for what is fitted; None: there are none.  memory: bytes for tiles.
    """

    query: Tensor
    gallery: Tensor | None
    own: np.ndarray
    train: Tensor | None = None
    memory: int = 1 << 28

    def each(self, function: Callable[[Tensor], Tensor]) -> "Sets":
        """The same function on queries, gallery and training embeddings."""
        gallery = None if self.gallery is None else function(self.gallery)
        train = None if self.train is None else function(self.train)
        return replace(self, query=function(self.query), gallery=gallery, train=train)


def truncate(sets: Sets, dim: int) -> Sets:
    """The first `dim` numbers of each embedding (Matryoshka; Kusupati et al., 2022, arXiv:2205.13147).

    Worth the loss only for encoders that were trained for it.  Raises ValueError: fewer numbers.
    """
    _check_dim(sets, dim)
    return sets.each(lambda rows: normalize(rows.float()[:, :dim]))


def pca(sets: Sets, dim: int | None, whiten: bool) -> Sets:
    """Principal components of the training embeddings (Jégou & Chum, ECCV 2012, section 2 to 3).

    Unit vectors less the mean of the training ones, rotated to its components, largest variance first;
    `dim` of them (None: all that carry variance); whiten: divided by their standard deviations; of
    length 1 again.

    Raises ValueError: no training embeddings, or fewer components than `dim`.
    """
    if sets.train is None:
        raise ValueError("pca is fitted on training embeddings, and there are none")
    train = normalize(sets.train.double())
    mean = train.mean(0)
    variances, directions = torch.linalg.eigh((train - mean).T @ (train - mean) / len(train))
    # Below the rounding of float32 embeddings there are no directions, only noise.
    order = variances.argsort(descending=True)
    order = order[variances[order] > variances.max() * 2.0**-40]
    if dim is not None and dim > len(order):
        raise ValueError(
            f"dim={dim}: {len(train)} training embeddings have {len(order)} principal components"
        )
    order = order[:dim]
    projection = directions[:, order]
    if whiten:
        projection = projection / variances[order].sqrt()

    def project(rows: Tensor) -> Tensor:
        parts = [
            normalize((normalize(part.double()) - mean) @ projection).float()
            for part in rows.split(max(1, sets.memory // 32 // rows.shape[1]))
        ]
        return torch.cat(parts)

    return sets.each(project)


def query_expansion(sets: Sets, neighbours: int, alpha: float) -> Sets:
    """Alpha query expansion (Radenović et al., TPAMI 2018, arXiv:1711.02512, section 3.4).

    A query becomes the direction of q + sum of cos(q, x)^alpha x over its nearest gallery items. The
    query itself, where it is in the gallery, counts once: as q.  Items at negative cosines add nothing.
    alpha = 0 is the average query expansion of Chum et al., ICCV 2007.
    """
    gallery = sets.query if sets.gallery is None else sets.gallery
    return replace(
        sets,
        query=_expanded(sets.query, gallery, sets.own, neighbours, alpha, sets.memory),
        gallery=gallery,
    )


def database_augmentation(sets: Sets, neighbours: int, alpha: float) -> Sets:
    """Each gallery item averaged with its nearest (Turcot & Lowe, ICCV workshops 2009).

    Weighted as in alpha query expansion, whose twin it is on the side of the gallery.

    Raises ValueError: the queries are in the gallery. A gallery that has been mixed with the query is
    not the one that the protocol asks for, the others.
    """
    if sets.gallery is None or (sets.own >= 0).any():
        raise ValueError(
            "database_augmentation needs a gallery apart from the queries: "
            "here it would mix each query into the items it is compared with"
        )
    gallery, own = sets.gallery, np.arange(len(sets.gallery))
    mixed = _expanded(gallery, gallery, own, neighbours, alpha, sets.memory)
    return replace(sets, gallery=mixed)


def _check_dim(sets: Sets, dim: int) -> None:
    if dim > sets.query.shape[1]:
        raise ValueError(f"dim={dim}: the embeddings have {sets.query.shape[1]} numbers")


def _expanded(
    query: Tensor, gallery: Tensor, own: np.ndarray, neighbours: int, alpha: float, memory: int
) -> Tensor:
    """Unit rows, float32 [q, d]: query + sum of similarity^alpha x over its nearest in the gallery."""
    unit = normalize(gallery.double())
    parts = []
    for rows, scores in similarity_tiles(Cosines(query, gallery), own, memory):
        scores = scores.double()
        weights = scores.clamp(min=0).pow(alpha)
        weights.masked_fill_((scores < kth_best(scores, neighbours)) | (scores < 0), 0)
        expanded = normalize(query[rows].double()) + weights @ unit
        parts.append(normalize(expanded).float())
    return torch.cat(parts)


class Cosines:
    """Exact cosines of the rows of two sets, float32: those that the evaluation ranks by."""

    def __init__(self, query: Tensor, gallery: Tensor):
        self.device, self.size = query.device, len(gallery)
        everything = [
            (rows, torch.arange(len(rows), device=self.device)) for rows in (query, gallery)
        ]
        with full_precision(self.device):
            self.scorer = Scorer(everything[0], everything[1], "cosine")

    def tile(self, rows: slice) -> Tensor:
        """[rows, gallery]."""
        with full_precision(self.device):
            scores = self.scorer.exact(rows, slice(0, self.size))
        return scores.clone()  # a tensor of inference mode takes no part in what follows

    def pairs(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Of the pairs (rows[i], columns[i]), [n]."""
        with full_precision(self.device):
            return self.scorer.exact_pairs(rows, columns)


def similarity_tiles(
    cosines: Cosines, own: np.ndarray, memory: int
) -> Iterator[tuple[slice, Tensor]]:
    """(rows, cosines [rows, gallery]), a query's own at -inf."""
    itself = torch.from_numpy(own).to(cosines.device)
    for rows in row_slices(len(own), memory // TILE_BYTES // cosines.size):
        scores = cosines.tile(rows)
        here = (itself[rows] >= 0).nonzero()[:, 0]
        scores[here, itself[rows][here]] = -torch.inf
        yield rows, scores


def kth_best(scores: Tensor, k: int) -> Tensor:
    """The k-th largest of each row, or its smallest: [rows, 1]."""
    return scores.topk(min(k, scores.shape[1])).values[:, -1:]


def row_slices(count: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` rows, at least one."""
    step = max(1, step)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
