"""Multi-level distance regularisation (MDR): Kim and Park, "Multi-level Distance Regularization for
Deep Metric Learning", AAAI 2021, arXiv:2102.04223.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.pairs import (
    check_batch,
    check_finite,
    cosine_similarity,
    full_precision,
    unit_distances,
)
from dml.types import Embeddings, Labels


def pair_distances(vectors: Float[Tensor, "n d"], normalize: bool) -> Float[Tensor, " p"]:
    """Distances of all pairs i < j, with gradient 0 where two vectors are equal."""
    first, second = torch.triu_indices(len(vectors), len(vectors), 1, device=vectors.device)
    if normalize:
        return unit_distances(cosine_similarity(vectors, vectors), squared=False)[first, second]
    squares = (vectors[first] - vectors[second]).square().sum(dim=1)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)


class MultiLevelDistance(nn.Module):
    r"""Draws every distance of the batch to the nearest of a few learned levels.

        R = w mean_(i,j) min_g |(d_ij - mu) / sigma - s_g| + nu sum_g s_g^2

    d_ij are the distances of all pairs i != j, whatever their classes; mu and sigma their mean and
    standard deviation, as running means without gradient (new = 0.9 old + 0.1 batch; the first
    batch sets them); s_g the levels, learned. It disturbs the main loss, so that no pair is satisfied
    for good and none pulls without end. The authors' code counts each vector's distance 0 to itself
    in mu and sigma; here, as in the paper's text, only pairs i != j are counted.

    Geometry: with `normalize` d is the distance between unit vectors, which is what a loss by cosine
    sees; without, that between the vectors before normalisation. The authors train without any
    normalisation.

    Args:
        weight: w, above 0.
        levels: s_g at the start, in units of sigma around mu.
        momentum: share of the old value in mu and sigma, in [0, 1).
        level_weight: nu, at least 0; keeps the levels from drifting away.
        normalize: see above.

    Parameters: levels [g]. Buffers: mean, deviation, started, kept in the checkpoint; they change in
    training mode only.
    Shapes: vectors [n, d], labels [n] (unused) -> scalar. With fewer than 3 rows there is no
    deviation: the first term is 0 and the running means stay. Where all distances have always been
    equal, sigma counts as 1e-6.
    """

    mean: Tensor
    deviation: Tensor
    started: Tensor

    def __init__(
        self,
        weight: float = 0.2,
        levels: Sequence[float] = (-3.0, 0.0, 3.0),
        momentum: float = 0.9,
        level_weight: float = 0.01,
        normalize: bool = True,
    ):
        super().__init__()
        self.weight, self.momentum, self.level_weight = weight, momentum, level_weight
        self.normalize = normalize
        self.levels = nn.Parameter(torch.tensor([float(level) for level in levels]))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, vectors: Embeddings, labels: Labels) -> Float[Tensor, ""]:
        """Penalty of a batch of vectors that are not normalised."""
        with full_precision(vectors):
            vectors, _ = check_batch(vectors, labels, "vectors")
            levels = self.levels.to(vectors.dtype)
            penalty = self.level_weight * levels.square().sum() + 0 * vectors.sum()
            if len(vectors) > 2:
                distances = pair_distances(vectors, self.normalize)
                mean, deviation = self._statistics(distances.detach())
                scaled = (distances - mean) / deviation.clamp(min=1e-6)
                gaps = (scaled[:, None] - levels).abs().amin(dim=1)
                penalty = penalty + self.weight * gaps.mean()
        return check_finite(penalty, vectors=vectors, levels=self.levels)

    def _statistics(self, distances: Float[Tensor, " p"]) -> tuple[Tensor, Tensor]:
        """Running mean and standard deviation, this batch included."""
        now = distances.mean(), distances.std()
        kept = [
            torch.where(self.started, self.momentum * old.to(new) + (1 - self.momentum) * new, new)
            for old, new in zip((self.mean, self.deviation), now, strict=True)
        ]
        if self.training:
            self.mean.copy_(kept[0])
            self.deviation.copy_(kept[1])
            self.started.fill_(True)
        return kept[0], kept[1]

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"weight={self.weight}, momentum={self.momentum}, level_weight={self.level_weight}, "
            f"normalize={self.normalize}"
        )
