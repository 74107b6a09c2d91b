"""Contrastive loss: Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant
Mapping", CVPR 2006.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    check_finite,
    compare,
    cosine_similarity,
    full_precision,
    pair_masks,
    unit_distances,
)
from dml.types import Embeddings, IndicesTuple, Labels

# Of a cosine in float32, and more than that of its distance: pairs this close to the margin are kept.
ROUNDING = 1e-5


def contrastive_values(
    excess: Float[Tensor, "*pairs"], squared_hinge: bool
) -> Float[Tensor, "*pairs"]:
    """One value per pair, from how far it is on the wrong side of its margin."""
    hinge = F.relu(excess)
    return hinge.square() / 2 if squared_hinge else hinge


def mean_value(
    values: Float[Tensor, "*pairs"], pairs: Bool[Tensor, "n m"], average: str
) -> Float[Tensor, ""]:
    """Sum of the values over the number of those above 0, or over the number of `pairs`."""
    count = values.count_nonzero() if average == "active" else pairs.sum()
    return values.sum() / count.clamp(min=1)


class Contrastive(nn.Module):
    r"""Contrastive loss, the paper's (`squared_hinge=True`) or with a plain hinge.

        positive pair:  1/2 [d - m_p]_+^2        negative pair:  1/2 [m_n - d]_+^2
        without the square: [d - m_p]_+                          [m_n - d]_+

    d is the Euclidean distance of the pair; the paper has m_p = 0 and names m_n m. It sums over
    given pairs. A batch holds many more negative pairs than positive ones, so here the loss is the
    mean over positive pairs plus the mean over negative pairs; `average` says over which of them.

    Geometry: cosine; embeddings are normalised inside, so d lies in [0, 2].

    Args:
        positive_margin: m_p, at least 0: positive pairs this near have the value 0.
        negative_margin: m_n, above 0: negative pairs this far have the value 0.
        squared_hinge: the paper's halved square of the hinge; else the hinge itself. The square pulls
            a far positive pair in proportion to its distance and hardly pushes a negative pair near
            the margin, which shrinks all distances of unit vectors; the paper's are of any length.
        average: "active" divides by the pairs with a value above 0, so that the many satisfied
            negatives do not drown the rest; "all" by all pairs.

    Shapes: embeddings [n, d], labels [n] -> scalar. Where there is no positive (negative) pair, that
    mean is 0. A batch without a pair gives 0 with gradient 0.
    """

    def __init__(
        self,
        positive_margin: float = 0.0,
        negative_margin: float = 1.0,
        squared_hinge: bool = False,
        average: str = "active",
    ):
        super().__init__()
        if average not in ("active", "all"):
            raise ValueError(f"average={average!r} must be 'active' or 'all'")
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.squared_hinge = squared_hinge
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
            positives, negatives = pair_masks(batch, indices_tuple)
            similarities = cosine_similarity(batch.embeddings, batch.reference)
            # Only negatives near the margin or inside it can have a value; picking them out by their
            # similarity is cheaper than a distance for every pair. The hinge draws the exact line.
            inside = similarities.detach() > 1 - self.negative_margin**2 / 2 - ROUNDING
            distances_p, distances_n = (
                unit_distances(similarities[pairs.nonzero(as_tuple=True)], squared=False)
                for pairs in (positives, negatives & inside)
            )
            values_p = contrastive_values(distances_p - self.positive_margin, self.squared_hinge)
            values_n = contrastive_values(self.negative_margin - distances_n, self.squared_hinge)
            loss = mean_value(values_p, positives, self.average)
            loss = loss + mean_value(values_n, negatives, self.average)
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"positive_margin={self.positive_margin}, negative_margin={self.negative_margin}, "
            f"squared_hinge={self.squared_hinge}, average={self.average}"
        )
