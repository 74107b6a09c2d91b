"""Triplet loss: Schroff et al., "FaceNet", CVPR 2015, arXiv:1503.03832; its soft form from Hermans
et al., "In Defense of the Triplet Loss for Person Re-Identification", arXiv:1703.07737.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    blockwise,
    check_finite,
    check_tuple,
    compare,
    cosine_similarity,
    full_precision,
    pair_masks,
    unit_distances,
)
from dml.types import Embeddings, IndicesTuple, Labels


def triplet_values(
    positive_distances: Float[Tensor, "*t"],
    negative_distances: Float[Tensor, "*t"],
    variant: str,
    margin: float,
) -> Float[Tensor, "*t"]:
    """One value per triplet; 0 where the negative's distance is infinite."""
    if variant == "soft":
        return F.softplus(positive_distances - negative_distances)
    return F.relu(positive_distances + margin - negative_distances)


def triplet_rows(
    distances: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    variant: str,
    margin: float,
) -> Float[Tensor, "n 2"]:
    """Per anchor, over all its triplets: the sum of the values, and how many are above 0."""
    anchors, columns = positives.nonzero(as_tuple=True)
    to_negatives = torch.where(negatives, distances, math.inf)
    values = triplet_values(
        distances[anchors, columns][:, None].expand(-1, distances.shape[1]),
        to_negatives.index_select(0, anchors),
        variant,
        margin,
    )
    per_pair = torch.stack([values.sum(dim=1), (values.detach() > 0).sum(dim=1)], dim=1)
    return distances.new_zeros(len(distances), 2).index_add(0, anchors, per_pair)


class Triplet(nn.Module):
    r"""Triplet loss of FaceNet, section 3.1 (`variant="margin"`), or Hermans et al.'s soft margin.

        margin:  [d(a, p) - d(a, n) + m]_+
        soft:    log(1 + exp(d(a, p) - d(a, n)))

    Which triplets count is the miner's choice (`loss(embeddings, labels, (a, p, n))`). Without a
    miner all triplets of the batch count; a miner's pairs stand for all triplets whose two pairs
    share the anchor. FaceNet sums over the triplets; a mean is that up to a factor, and `average`
    names it.

    Geometry: cosine; embeddings are normalised inside, as in FaceNet, so d lies in [0, 2] and its
    square in [0, 4].

    Args:
        variant: "margin" or "soft". The soft form has no margin and ignores that parameter.
        margin: m, above 0, in units of the distance used.
        squared_distances: d is the squared Euclidean distance (FaceNet), else the distance itself
            (Hermans et al., who found that it collapses less).
        average: "active" divides by the triplets with a value above 0 (Hermans et al.'s "batch all,
            non-zero"), so that many satisfied triplets do not drown the rest; "all" by all
            triplets.

    Shapes: embeddings [n, d], labels [n] -> scalar. Anchors without a positive or a negative are
    in no triplet. A batch without a triplet gives 0 with gradient 0.
    """

    def __init__(
        self,
        variant: str = "margin",
        margin: float = 0.2,
        squared_distances: bool = True,
        average: str = "active",
    ):
        super().__init__()
        if variant not in ("margin", "soft"):
            raise ValueError(f"variant={variant!r} must be 'margin' or 'soft'")
        if average not in ("active", "all"):
            raise ValueError(f"average={average!r} must be 'active' or 'all'")
        self.variant = variant
        self.margin = margin
        self.squared_distances = squared_distances
        self.average = average

    def forward(
        self,
        embeddings: Embeddings,
        labels: Labels,
        indices_tuple: IndicesTuple | None = None,
        *,
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Tensor | None = None,
        self_slots: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of a batch; see `dml.losses` for the arguments."""
        with full_precision(embeddings):
            batch = compare(embeddings, labels, reference, reference_labels, self_slots)
            similarities = cosine_similarity(batch.embeddings, batch.reference)
            distances = unit_distances(similarities, self.squared_distances)
            if indices_tuple is not None and len(indices_tuple) == 3:
                total, active, count = self._chosen(distances, check_tuple(indices_tuple, batch))
            else:
                total, active, count = self._all(distances, *pair_masks(batch, indices_tuple))
            loss = total / (active if self.average == "active" else count).clamp(min=1)
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def _chosen(self, distances: Tensor, triplets: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(sum, triplets above 0, triplets) of a miner's triplets."""
        anchors, positives, negatives = triplets
        flat, first = distances.flatten(), anchors * distances.shape[1]
        values = triplet_values(
            flat.index_select(0, first + positives),
            flat.index_select(0, first + negatives),
            self.variant,
            self.margin,
        )
        return values.sum(), (values > 0).sum(), values.new_tensor(len(values))

    def _all(self, distances: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, ...]:
        """(sum, triplets above 0, triplets) of all triplets within the masks."""

        def rows(distances: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
            return triplet_rows(distances, positives, negatives, self.variant, self.margin)

        total, active = blockwise(rows, distances, positives, negatives).sum(dim=0)
        return total, active, (positives.sum(dim=1) * negatives.sum(dim=1)).sum()

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"variant={self.variant}, margin={self.margin}, "
            f"squared_distances={self.squared_distances}, average={self.average}"
        )
