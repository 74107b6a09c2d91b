"""Angular loss: Wang et al., "Deep Metric Learning with Angular Loss", ICCV 2017, arXiv:1708.01682."""

import math

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    blockwise,
    check_finite,
    compare,
    full_precision,
    masked_logsumexp,
    pair_masks,
    unit,
)
from dml.types import Embeddings, IndicesTuple, Labels


def angular_rows(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    others: Float[Tensor, "m d"],
    square_tangent: float,
) -> Float[Tensor, " n"]:
    """Per anchor, the sum over its positive pairs; 0 where it has no negative.

    others: the normalised vectors that the columns stand for.
    """
    anchors, columns = positives.nonzero(as_tuple=True)  # [p]: every positive pair
    of_positive = others.index_select(0, columns) @ others.T  # [p, m]
    both = similarities.index_select(0, anchors) + of_positive
    pulled = masked_logsumexp(4 * square_tangent * both, negatives.index_select(0, anchors))
    values = F.softplus(pulled - 2 * (1 + square_tangent) * similarities[anchors, columns])
    return similarities.new_zeros(len(similarities)).index_add(0, anchors, values)


class Angular(nn.Module):
    r"""Angular loss in its batch form: bounds the angle at the negative of a triplet.

        l(a, p) = log(1 + sum_n exp(f_apn))
        f_apn = 4 tan^2(alpha) (x_a + x_p) . x_n - 2 (1 + tan^2(alpha)) x_a . x_p

    x are normalised embeddings, n runs over the anchor's negatives. f_apn is above 0 where the
    negative sees the pair under an angle larger than alpha, up to a constant that the paper drops for
    vectors of length 1. The loss is the mean over all positive pairs (a, p), each way round (the paper:
    one pair per class). Anchors without a positive carry no term; pairs without a negative have the
    value 0. The paper adds the loss to the N-pair loss in its best results; this is the angular loss
    alone.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        degrees: alpha in *degrees*, in (0, 90), as everywhere in print.

    Shapes: embeddings [n, d], labels [n] -> scalar. It needs a [p, n] tensor, p the number of positive
    pairs; it is made in blocks and again in the backward pass, so memory stays O(n^2) for any batch.
    A batch without a positive pair gives 0 with gradient 0.
    """

    def __init__(self, degrees: float = 45.0):
        super().__init__()
        self.degrees = degrees

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
            anchors = unit(batch.embeddings)
            others = anchors if batch.reference is batch.embeddings else unit(batch.reference)
            square_tangent = math.tan(math.radians(self.degrees)) ** 2

            def rows(similarities: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
                return angular_rows(similarities, positives, negatives, others, square_tangent)

            values = blockwise(rows, anchors @ others.T, positives, negatives)
            loss = values.sum() / positives.sum().clamp(min=1)
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"degrees={self.degrees}"
