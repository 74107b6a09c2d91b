"""Recall@k surrogate: Patel et al., "Recall@k Surrogate Loss with Large Batches and Similarity
Mixup", CVPR 2022, arXiv:2108.11179.
"""

from collections.abc import Sequence

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
from dml.losses.smooth_ap import items_above
from dml.types import Embeddings, IndicesTuple, Labels


def recall_rows(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    k: Float[Tensor, " k"],
    k_temperature: float,
    rank_temperature: float,
) -> Float[Tensor, " n"]:
    """1 - mean over k of the smooth recall, per query; 1 where it has no positive."""
    queries, above = items_above(similarities, positives, negatives, rank_temperature)
    # Rank 1 plus everything above; the item itself contributes sigmoid(0) = 1/2 that must not count.
    rank = 0.5 + above.sum(dim=1)
    within = torch.sigmoid((k - rank[:, None]) / k_temperature)  # [p, k]
    found = similarities.new_zeros(len(similarities), len(k)).index_add(0, queries, within)
    reachable = torch.minimum(positives.sum(dim=1, keepdim=True).clamp(min=1), k)
    return 1 - (torch.minimum(found, k) / reachable).mean(dim=1)


class RecallAtK(nn.Module):
    r"""Recall@k surrogate: one minus recall, both step functions in it replaced by sigmoids.

        L = mean_q (1 - 1/|K| sum_{k in K} R_k)
        R_k = min(k, sum_{i in P} G_1(k - rank_i)) / min(k, |P|)
        rank_i = 1 + sum_{j != i} G_2(s_j - s_i)
        G_t(x) = 1 / (1 + exp(-x / tau_t))

    s_i is the cosine between query q and item i, the sum over j runs over all items but the query
    and i, and R_k is the share of the positives that are among the first k, out of those that can
    be. Each embedding of the batch is a query against all others: P are the others of its class.
    The mean runs over queries that have a positive.

    Both minima are the authors' code's. Their code also ranks the query itself, always first, so that
    its k is one less than ours. The paper's similarity mixup is not part of the loss.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        k: whole numbers of at least 1. A k beyond the number of items asks nothing.
        k_temperature: tau_1, above 0, in units of rank.
        rank_temperature: tau_2, above 0, in units of cosine. Pairs further apart than about 20 tau_2
            get no gradient.

    Shapes: embeddings [n, d], labels [n] -> scalar in [0, 1). The ranks need a [p, n] tensor, p the
    number of positive pairs; it is made in blocks and again in the backward pass, so memory stays
    O(n^2) for any batch. A batch without a positive pair gives 0 with gradient 0.
    """

    def __init__(
        self,
        k: Sequence[int] = (1, 2, 4, 8, 16),
        k_temperature: float = 1.0,
        rank_temperature: float = 0.01,
    ):
        super().__init__()
        if not k or any(value < 1 for value in k):
            raise ValueError(f"k={list(k)} must be whole numbers of at least 1")
        self.k = tuple(k)
        self.k_temperature = k_temperature
        self.rank_temperature = rank_temperature

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
        refuse_tuple(indices_tuple, "RecallAtK", "a rank is a rank among all items, not some pairs")
        with full_precision(embeddings):
            batch = compare(embeddings, labels, reference, reference_labels, self_slots)
            positives, negatives = pair_masks(batch)
            similarities = cosine_similarity(batch.embeddings, batch.reference)
            k = similarities.new_tensor(self.k)

            def rows(similarities: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
                return recall_rows(
                    similarities,
                    positives,
                    negatives,
                    k,
                    self.k_temperature,
                    self.rank_temperature,
                )

            values = blockwise(rows, similarities, positives, negatives)
            loss = mean_over(values, positives.any(dim=1))
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"k={self.k}, k_temperature={self.k_temperature}, "
            f"rank_temperature={self.rank_temperature}"
        )
