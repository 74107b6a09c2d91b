"""Lifted structured loss: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature
Embedding", CVPR 2016, arXiv:1511.06452; its generalized form from Hermans et al., "In Defense of the
Triplet Loss for Person Re-Identification", arXiv:1703.07737.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    check_finite,
    compare,
    euclidean_distances,
    full_precision,
    masked_logsumexp,
    mean_over,
    pair_masks,
)
from dml.types import Embeddings, IndicesTuple, Labels


def lifted_values(
    distances: Float[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    margin: float,
) -> Float[Tensor, "n m"]:
    """One value per pair (i, j), read as a positive one; 0 where neither end has a negative."""
    # The sums over the negatives of i and of j do not depend on the pair, so one per row and one per
    # column are enough. Without a negative they are -inf, and logaddexp(-inf, -inf) has gradient NaN.
    least = torch.finfo(distances.dtype).min / 4
    of_row = masked_logsumexp(margin - distances, negatives, dim=1).clamp(min=least)
    of_column = masked_logsumexp(margin - distances, negatives, dim=0).clamp(min=least)
    bound = torch.logaddexp(of_row[:, None], of_column) + distances
    return F.relu(bound).square() / 2


def generalized_rows(
    distances: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    margin: float,
) -> Float[Tensor, " n"]:
    """One value per anchor; 0 where it has no positive or no negative."""
    farthest = masked_logsumexp(distances, positives)
    nearest = masked_logsumexp(margin - distances, negatives)
    return F.relu(farthest + nearest)


class LiftedStructure(nn.Module):
    r"""Lifted structured loss: the smooth bound of Oh Song et al., or Hermans et al.'s form of it.

        original:     1 / (2 |P|) sum_{(i, j) in P} [J_ij]_+^2
                      J_ij = log( sum_{(i, k) in N} exp(m - d_ik)
                                + sum_{(j, l) in N} exp(m - d_jl) ) + d_ij
        generalized:  mean_a [ log sum_p exp(d_ap) + log sum_n exp(m - d_an) ]_+

    d are Euclidean distances, not squared. P and N are the positive and negative pairs of the batch,
    each pair once whichever way round it is given. The original looks at the negatives of both ends
    of a positive pair. The generalized mean runs over the anchors that have a positive. Pairs and
    anchors without any negative have the value 0.

    Geometry: euclidean, of embeddings that are *not* normalised, as in both papers' formulas: on
    the unit sphere distances differ too little for the soft maximum over all negatives to single out
    the near ones. Add regularizer=l2 to hold their length.

    Args:
        variant: "original" or "generalized".
        margin: m (alpha in Oh Song et al.), above 0, in units of distance.

    Shapes: embeddings [n, d], labels [n] -> scalar; memory O(n^2). A batch without a positive or
    without a negative pair gives 0 with gradient 0. With a reference the second sum of the original
    runs over the batch's own negatives of j, the only ones whose distance to j is known.
    """

    def __init__(self, variant: str = "original", margin: float = 1.0):
        super().__init__()
        if variant not in ("original", "generalized"):
            raise ValueError(f"variant={variant!r} must be 'original' or 'generalized'")
        self.variant = variant
        self.margin = margin

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
            positives, negatives = pair_masks(batch, indices_tuple)
            distances = euclidean_distances(batch.embeddings, batch.reference)
            if self.variant == "generalized":
                rows = generalized_rows(distances, positives, negatives, self.margin)
                loss = mean_over(rows, positives.any(dim=1))
            else:
                if indices_tuple is not None and reference is None:
                    # A miner names a pair from one end only; both ends belong to it.
                    positives, negatives = positives | positives.T, negatives | negatives.T
                loss = mean_over(lifted_values(distances, negatives, self.margin), positives)
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"variant={self.variant}, margin={self.margin}"
