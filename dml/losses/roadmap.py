"""ROADMAP: Ramzi et al., "Robust and Decomposable Average Precision for Image Retrieval",
NeurIPS 2021, arXiv:2110.01445.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    blockwise,
    check_finite,
    compare,
    cosine_similarity,
    full_precision,
    mean_over,
    pair_masks,
    refuse_tuple,
)
from dml.types import Embeddings, IndicesTuple, Labels


def step_of_negatives(
    lead: Float[Tensor, "p m"], temperature: float, slope: float, knee: float
) -> Float[Tensor, "p m"]:
    """H-: how much a negative adds to a positive's rank, by its lead s_n - s_p; above the step."""
    soft = torch.sigmoid(lead / temperature)
    at_knee = 1 / (1 + math.exp(-knee / temperature)) + 0.5
    # Equal similarities may differ by rounding; such a lead counts as none.
    ahead = lead > 4 * torch.finfo(lead.dtype).eps
    steep = slope * (lead - knee) + at_knee
    return torch.where(lead > knee, steep, torch.where(ahead, soft + 0.5, soft))


def sup_ap_rows(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    temperature: float,
    slope: float,
    knee: float,
) -> Float[Tensor, " n"]:
    """1 - SupAP per query; 1 where it has no positive."""
    queries, items = positives.nonzero(as_tuple=True)  # [p]: every positive of every query
    lead = similarities.index_select(0, queries) - similarities[queries, items][:, None]  # [p, m]
    tie = -4 * torch.finfo(lead.dtype).eps
    # The item itself has lead 0 and is the 1 that a rank starts from.
    ahead = (lead.detach() >= tie) & positives.index_select(0, queries)
    rank_among_positives = ahead.sum(dim=1)
    steps = step_of_negatives(lead, temperature, slope, knee)
    negatives_ahead = torch.where(negatives.index_select(0, queries), steps, 0).sum(dim=1)
    precision = rank_among_positives / (rank_among_positives + negatives_ahead)
    sums = similarities.new_zeros(len(similarities)).index_add(0, queries, precision)
    return 1 - sums / positives.sum(dim=1).clamp(min=1)


def calibration_rows(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    positive_margin: float,
    negative_margin: float,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Mean shortfall of a query's positives, and mean excess of its negatives; 0 for none."""
    short = torch.where(positives, (positive_margin - similarities).clamp(min=0), 0).sum(dim=1)
    excess = torch.where(negatives, (similarities - negative_margin).clamp(min=0), 0).sum(dim=1)
    return (
        short / positives.sum(dim=1).clamp(min=1),
        excess / negatives.sum(dim=1).clamp(min=1),
    )


class Roadmap(nn.Module):
    r"""ROADMAP: an upper bound of 1 - AP, and a term that calibrates similarities across batches.

        L = (1 - lambda) L_SupAP + lambda L_calibr
        L_SupAP = mean_q (1 - 1/|P| sum_{i in P} r_i / (r_i + sum_{j in N} H(s_j - s_i)))
        r_i = number of positives j (i among them) with s_j >= s_i, without gradient
        H(x) = sigma(x / tau)                        for x <= 0
               sigma(x / tau) + 1/2                  for 0 < x <= delta
               rho (x - delta) + sigma(delta / tau) + 1/2   above
        L_calibr = mean_q 1/|P| sum_{i in P} [alpha - s_i]_+ + mean_q 1/|N| sum_{j in N} [s_j - beta]_+

    s_i is the cosine between query q and item i. Each embedding of the batch is a query against all
    others: P are the others of its class, N all of other classes, in any numbers and any order. The
    query itself is not ranked, as in evaluation. A negative far ahead keeps a gradient, where
    Smooth-AP's is gone, and the ranks among positives, which would push some of them down, have none.
    The mean of L_SupAP and of the first calibration term runs over queries that have a positive, that
    of the second over queries that have a negative.

    The authors' code ranks the query too; beyond delta it takes rho x + 1.44, so that H jumps there by
    about 5 with the same slope; it averages the calibration over the pairs with a value above 0 and
    leaves both weights at 1, which is lambda = 1/2 with twice the learning rate.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        temperature: tau, above 0.
        slope: rho, at least 0: slope of H beyond the knee.
        knee: delta, in [0, 2].
        positive_margin: alpha, in [-1, 1]: positives are drawn to this cosine.
        negative_margin: beta, in [-1, 1]: negatives are driven below this cosine.
        calibration: lambda, in [0, 1]; 0 is SupAP alone.

    Shapes: embeddings [n, d], labels [n] -> scalar. The ranks need a [p, n] tensor, p the number of
    positive pairs; it is made in blocks and again in the backward pass, so memory stays O(n^2) for
    any batch. A batch without a pair gives 0 with gradient 0.
    """

    def __init__(
        self,
        temperature: float = 0.01,
        slope: float = 100.0,
        knee: float = 0.05,
        positive_margin: float = 0.9,
        negative_margin: float = 0.6,
        calibration: float = 0.5,
    ):
        super().__init__()
        self.temperature = temperature
        self.slope = slope
        self.knee = knee
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.calibration = calibration

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
        refuse_tuple(indices_tuple, "Roadmap", "a rank is a rank among all items, not some pairs")
        with full_precision(embeddings):
            batch = compare(embeddings, labels, reference, reference_labels, self_slots)
            positives, negatives = pair_masks(batch)
            similarities = cosine_similarity(batch.embeddings, batch.reference)

            def rows(similarities: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
                return sup_ap_rows(
                    similarities, positives, negatives, self.temperature, self.slope, self.knee
                )

            has_positive, has_negative = positives.any(dim=1), negatives.any(dim=1)
            sup_ap = mean_over(blockwise(rows, similarities, positives, negatives), has_positive)
            short, excess = calibration_rows(
                similarities, positives, negatives, self.positive_margin, self.negative_margin
            )
            calibration = mean_over(short, has_positive) + mean_over(excess, has_negative)
            loss = (1 - self.calibration) * sup_ap + self.calibration * calibration
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"temperature={self.temperature}, slope={self.slope}, knee={self.knee}, "
            f"positive_margin={self.positive_margin}, negative_margin={self.negative_margin}, "
            f"calibration={self.calibration}"
        )
