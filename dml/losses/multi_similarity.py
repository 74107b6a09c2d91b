"""Multi-similarity loss: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep
Metric Learning", CVPR 2019, arXiv:1904.06627.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    check_finite,
    compare,
    cosine_similarity,
    full_precision,
    masked_logsumexp,
    pair_masks,
)
from dml.types import Embeddings, IndicesTuple, Labels


def mined(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    epsilon: float,
) -> tuple[Bool[Tensor, "n m"], Bool[Tensor, "n m"]]:
    """The pairs hard enough to keep; none for an anchor that lacks one kind of them."""
    hardest_p = torch.where(positives, similarities, math.inf).amin(dim=1, keepdim=True)
    hardest_n = torch.where(negatives, similarities, -math.inf).amax(dim=1, keepdim=True)
    kept_p = positives & (similarities - epsilon < hardest_n)
    kept_n = negatives & (similarities + epsilon > hardest_p)
    return kept_p, kept_n


def multi_similarity_rows(
    similarities: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    alpha: float,
    beta: float,
    base: float,
) -> Float[Tensor, " n"]:
    """One value per anchor; 0 where it has no pair."""
    lse_p = masked_logsumexp(-alpha * (similarities - base), positives)
    lse_n = masked_logsumexp(beta * (similarities - base), negatives)
    return F.softplus(lse_p) / alpha + F.softplus(lse_n) / beta


class MultiSimilarity(nn.Module):
    r"""Multi-similarity loss with the pair mining that is part of it.

        L = 1/n sum_a { 1/alpha log(1 + sum_{p in P_a} exp(-alpha (s_ap - lambda)))
                      + 1/beta  log(1 + sum_{n in N_a} exp( beta  (s_an - lambda))) }
        P_a: positives with s_ap < max_n s_an + epsilon
        N_a: negatives with s_an > min_p s_ap - epsilon

    s are cosines; maximum and minimum run over all negatives and positives of the anchor (of the
    pairs given, with a miner). The sum is divided by the batch size n, whatever the mining leaves
    over. An anchor without a positive or without a negative has the value 0.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        alpha: above 0: sharpness of the weighting of positives.
        beta: above 0: sharpness of the weighting of negatives.
        base: lambda, in [-1, 1]: the similarity that separates positives from negatives.
        epsilon: margin of the mining, at least 0. Above 2 every pair is kept.

    Shapes: embeddings [n, d], labels [n] -> scalar. A batch without a pair gives 0 with gradient 0.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float = 0.1
    ):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon

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
            masks = pair_masks(batch, indices_tuple)
            positives, negatives = mined(similarities.detach(), *masks, self.epsilon)
            rows = multi_similarity_rows(
                similarities, positives, negatives, self.alpha, self.beta, self.base
            )
            loss = rows.mean()
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"alpha={self.alpha}, beta={self.beta}, base={self.base}, epsilon={self.epsilon}"
