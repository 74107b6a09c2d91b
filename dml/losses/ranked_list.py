"""Ranked list loss: Wang et al., "Ranked List Loss for Deep Metric Learning", CVPR 2019,
arXiv:1903.03238.
"""

import torch
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
    unit_distances,
)
from dml.types import Embeddings, IndicesTuple, Labels


def weighted_mean(
    values: Float[Tensor, "n m"], mask: Bool[Tensor, "n m"], temperature: float
) -> Float[Tensor, " n"]:
    """Mean of each row's values in `mask`, weighted by exp(T value) without gradient; 0 for none."""
    logits = temperature * values.detach()
    weights = (logits - masked_logsumexp(logits, mask)[:, None]).exp()
    return (torch.where(mask, weights, 0) * values).sum(dim=1)


def ranked_list_rows(
    distances: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    boundary: float,
    margin: float,
    positive_temperature: float,
    negative_temperature: float,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(positive part, negative part) of each anchor; 0 where no pair is beyond its boundary."""
    outside = distances - (boundary - margin)
    inside = boundary - distances
    return (
        weighted_mean(outside, positives & (outside > 0), positive_temperature),
        weighted_mean(inside, negatives & (inside > 0), negative_temperature),
    )


class RankedList(nn.Module):
    r"""Ranked list loss: all positives of an anchor inside a sphere, all negatives outside a larger.

        L = mean_a ((1 - lambda) L_P + lambda L_N)
        L_P = sum_{p in P*} w_p (d_p - (alpha - m)) / sum w_p,   w_p = exp(T_p (d_p - (alpha - m)))
        L_N = sum_{n in N*} w_n (alpha - d_n) / sum w_n,         w_n = exp(T_n (alpha - d_n))
        P* = {p: d_p > alpha - m},   N* = {n: d_n < alpha}

    d is the Euclidean distance between anchor and item; only items on the wrong side of their
    boundary count. The weights take part in no derivative, as in the authors' code. T_p is of the
    paper's extended version; the first has T_p = 0 and L_P + L_N, twice the loss at lambda = 1/2. The
    mean runs over the anchors that have a pair; an empty P* or N* counts 0.

    Geometry: cosine; embeddings are normalised inside, so d lies in [0, 2].

    Args:
        boundary: alpha, in (0, 2]: negatives are driven beyond this distance.
        margin: m, in (0, 2]: positives are drawn within alpha - m.
        positive_temperature: T_p, at least 0: how much the farthest positives prevail.
        negative_temperature: T_n, at least 0: how much the nearest negatives prevail.
        negative_weight: lambda, in [0, 1].

    Shapes: embeddings [n, d], labels [n] -> scalar. A batch without a pair gives 0 with gradient 0.
    """

    def __init__(
        self,
        boundary: float = 1.2,
        margin: float = 0.4,
        positive_temperature: float = 0.0,
        negative_temperature: float = 10.0,
        negative_weight: float = 0.5,
    ):
        super().__init__()
        self.boundary = boundary
        self.margin = margin
        self.positive_temperature = positive_temperature
        self.negative_temperature = negative_temperature
        self.negative_weight = negative_weight

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
            of_positives, of_negatives = ranked_list_rows(
                unit_distances(similarities, squared=False),
                positives,
                negatives,
                self.boundary,
                self.margin,
                self.positive_temperature,
                self.negative_temperature,
            )
            rows = torch.lerp(of_positives, of_negatives, self.negative_weight)
            loss = mean_over(rows, (positives | negatives).any(dim=1))
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"boundary={self.boundary}, margin={self.margin}, "
            f"positive_temperature={self.positive_temperature}, "
            f"negative_temperature={self.negative_temperature}, "
            f"negative_weight={self.negative_weight}"
        )
