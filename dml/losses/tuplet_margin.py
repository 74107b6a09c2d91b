"""Tuplet margin loss: Yu and Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    check_finite,
    check_radians,
    compare,
    cosine_similarity,
    full_precision,
    masked_logsumexp,
    mean_over,
    pair_masks,
)
from dml.types import Embeddings, IndicesTuple, Labels


def cosine_turned_back(cosine: Float[Tensor, "*n"], margin: float) -> Float[Tensor, "*n"]:
    """cos(theta - m) from cos(theta).

    Nearer to 0 or pi than rounding can tell, theta counts as that angle: there it has slope infinity
    in the cosine.
    """
    squares = (1 - cosine) * (1 + cosine)
    apart = squares > 4 * torch.finfo(cosine.dtype).eps
    sine = torch.where(apart, squares, 1).sqrt().where(apart, 0)
    return cosine * math.cos(margin) + sine * math.sin(margin)


def tuplet_margin_values(
    similarities: Float[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    margin: float,
    scale: float,
) -> Float[Tensor, "n m"]:
    """One value per pair, read as a positive one; 0 where the anchor has no negative."""
    nearest = masked_logsumexp(scale * similarities, negatives)[:, None]
    return F.softplus(nearest - scale * cosine_turned_back(similarities, margin))


class TupletMargin(nn.Module):
    r"""Tuplet margin loss: one positive against all negatives, the positive's angle eased by a slack.

        l(a, p) = log(1 + sum_n exp(s (cos theta_an - cos(theta_ap - beta))))

    theta is the angle between two embeddings, n runs over the anchor's negatives. The slack margin
    beta is taken *off* the positive's angle: it spares positives that are near already, against
    overfitting to hard triplets. The loss is the mean over all positive pairs (a, p), each way round.
    The paper draws one negative per other class; here all of the batch count. Anchors without a
    positive carry no term; pairs without a negative have the value 0. The paper's second term, the
    intra-pair variance, is not part of it.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        margin: beta in *radians*, in [0, pi/2]. (pytorch-metric-learning takes degrees: its 5.73 is
            0.1.)
        scale: s, above 0.
        margin_degrees: refused, with the value in radians in the message.

    Shapes: embeddings [n, d], labels [n] -> scalar. A batch without a positive pair gives 0 with
    gradient 0.
    """

    def __init__(self, margin: float = 0.1, scale: float = 64.0, *, margin_degrees: None = None):
        super().__init__()
        check_radians("TupletMargin", margin, margin_degrees)
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
            values = tuplet_margin_values(similarities, negatives, self.margin, self.scale)
            loss = mean_over(values, positives)
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"margin={self.margin}, scale={self.scale}"
