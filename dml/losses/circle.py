"""Circle loss: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization",
CVPR 2020, arXiv:2002.10857.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    check_finite,
    compare,
    cosine_similarity,
    full_precision,
    masked_logsumexp,
    mean_over,
    pair_masks,
)
from dml.types import Embeddings, IndicesTuple, Labels


def circle_rows(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    margin: float,
    scale: float,
) -> Float[Tensor, " n"]:
    """One value per anchor; 0 where it has no positive or no negative."""
    # The weights set the pace of each pair: the paper multiplies the gradient by alpha when it is
    # passed back to the similarity, so alpha itself takes part in no derivative.
    weight_p = (1 + margin - similarities.detach()).clamp(min=0)
    weight_n = (similarities.detach() + margin).clamp(min=0)
    lse_p = masked_logsumexp(-scale * weight_p * (similarities - (1 - margin)), positives)
    lse_n = masked_logsumexp(scale * weight_n * (similarities - margin), negatives)
    return F.softplus(lse_n + lse_p)


class Circle(nn.Module):
    r"""Circle loss with the paper's O_p = 1 + m, O_n = -m, Delta_p = 1 - m, Delta_n = m.

        L_a = log(1 + sum_n exp(gamma alpha_n (s_n - m))
                      * sum_p exp(-gamma alpha_p (s_p - (1 - m))))
        alpha_p = [1 + m - s_p]_+,   alpha_n = [s_n + m]_+,   both without gradient

    s_p and s_n are the cosines between anchor a and its positives and negatives. The loss is the
    mean over the anchors that have a positive; the others carry no term of the formula and are
    left out. An anchor with positives but no negative has the value 0.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        margin: m, in (0, 1). Positives are drawn to 1 + m, negatives to -m; the boundary is a
            circle of radius sqrt(2) m around s_n = 0, s_p = 1. Smaller is stricter.
        scale: gamma, above 0: sharpness of the soft maximum over pairs.

    Shapes: embeddings [n, d], labels [n] -> scalar. A batch without a pair gives 0 with gradient 0.
    """

    def __init__(self, margin: float = 0.4, scale: float = 80.0):
        super().__init__()
        self.margin = margin
        self.scale = scale

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
            rows = circle_rows(similarities, positives, negatives, self.margin, self.scale)
            loss = mean_over(rows, positives.any(dim=1))
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"margin={self.margin}, scale={self.scale}"
