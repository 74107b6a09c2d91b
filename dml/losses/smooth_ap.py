"""Smooth-AP: Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval",
ECCV 2020, arXiv:2007.12163.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
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


def items_above(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    temperature: float,
) -> tuple[Int[Tensor, " p"], Float[Tensor, "p m"]]:
    """(query, sigmoid((s_j - s_i) / temperature) of every item j) for each positive i of each query.

    The positive itself has 1/2, and what is not ranked 0.
    """
    queries, items = positives.nonzero(as_tuple=True)
    own = similarities[queries, items][:, None]
    # What is not ranked, the query itself, is infinitely far: sigmoid(-inf) = 0.
    ranked = torch.where(positives | negatives, similarities, -math.inf)
    return queries, torch.sigmoid((ranked.index_select(0, queries) - own) / temperature)


def smooth_ap_rows(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    temperature: float,
) -> Float[Tensor, " n"]:
    """1 - AP per query; 1 where it has no positive."""
    queries, above = items_above(similarities, positives, negatives, temperature)
    # Rank 1 plus everything above; the item itself contributes sigmoid(0) = 1/2 that must not count.
    rank = 0.5 + above.sum(dim=1)
    rank_among_positives = 0.5 + (above * positives.index_select(0, queries)).sum(dim=1)
    precision = rank_among_positives / rank
    sums = similarities.new_zeros(len(similarities)).index_add(0, queries, precision)
    return 1 - sums / positives.sum(dim=1).clamp(min=1)


class SmoothAP(nn.Module):
    r"""Smooth-AP: one minus average precision with the step function replaced by a sigmoid.

        L = mean_q (1 - AP_q)
        AP_q = 1/|P| sum_{i in P}
                (1 + sum_{j in P, j != i} G(s_j - s_i))
              / (1 + sum_{j in P, j != i} G(s_j - s_i) + sum_{j in N} G(s_j - s_i))
        G(x) = 1 / (1 + exp(-x / tau))

    s_i is the cosine between query q and item i. Each embedding of the batch is a query against all
    others: P are the others of its class, N all of other classes, in any numbers and any order. The
    query itself is not ranked, as in evaluation. (The authors' code ranks it, always first, which
    shrinks every loss by a factor and an offset.) The mean runs over queries that have a positive.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        temperature: tau, above 0. Pairs further apart than about 20 tau in cosine get next to no gradient.

    Shapes: embeddings [n, d], labels [n] -> scalar in [0, 1). The ranks need a [p, n] tensor, p the
    number of positive pairs; it is made in blocks and again in the backward pass, so memory stays
    O(n^2) for any batch. A batch without a positive pair gives 0 with gradient 0.
    """

    def __init__(self, temperature: float = 0.01):
        super().__init__()
        self.temperature = temperature

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
        refuse_tuple(indices_tuple, "SmoothAP", "a rank is a rank among all items, not some pairs")
        with full_precision(embeddings):
            batch = compare(embeddings, labels, reference, reference_labels, self_slots)
            positives, negatives = pair_masks(batch)
            similarities = cosine_similarity(batch.embeddings, batch.reference)

            def rows(similarities: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
                return smooth_ap_rows(similarities, positives, negatives, self.temperature)

            values = blockwise(rows, similarities, positives, negatives)
            loss = mean_over(values, positives.any(dim=1))
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"temperature={self.temperature}"
