"""Supervised contrastive loss: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020,
arXiv:2004.11362.
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
)
from dml.types import Embeddings, IndicesTuple, Labels


def sup_con_rows(
    logits: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
) -> Float[Tensor, " n"]:
    """One value per anchor; 0 where it has no positive."""
    count = positives.sum(dim=1)
    mean_positive = torch.where(positives, logits, 0).sum(dim=1) / count.clamp(min=1)
    rows = masked_logsumexp(logits, positives | negatives) - mean_positive
    return torch.where(count > 0, rows, 0)


class SupCon(nn.Module):
    r"""Supervised contrastive loss, equation 2 of the paper (the logarithm inside the sum, L_out).

        L_a = -1/|P| sum_{p in P} log( exp(s_ap / tau) / sum_{k in P + N} exp(s_ak / tau) )

    s are cosines, P the anchor's positives, N its negatives; the other positives stay in the
    denominator. The loss is the mean over the anchors that have a positive; the others carry no
    term of the formula and are left out. Without a negative the loss is not 0: it still draws the
    positives to equal similarity.

    The authors' code multiplies by tau / 0.07, which the paper does not: a matter of learning rate.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        temperature: tau, above 0.

    Shapes: embeddings [n, d], labels [n] -> scalar. A batch without a positive pair gives 0 with
    gradient 0.
    """

    def __init__(self, temperature: float = 0.1):
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
        with full_precision(embeddings):
            batch = compare(embeddings, labels, reference, reference_labels, self_slots)
            positives, negatives = pair_masks(batch, indices_tuple)
            logits = cosine_similarity(batch.embeddings, batch.reference) / self.temperature
            rows = sup_con_rows(logits, positives, negatives)
            loss = mean_over(rows, positives.any(dim=1))
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"temperature={self.temperature}"
