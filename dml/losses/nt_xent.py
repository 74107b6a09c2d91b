"""NT-Xent: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations"
(SimCLR), ICML 2020, arXiv:2002.05709.
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


def nt_xent_values(
    logits: Float[Tensor, "n m"], negatives: Bool[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    """One value per pair, read as a positive one; 0 where the anchor has no negative."""
    return F.softplus(masked_logsumexp(logits, negatives)[:, None] - logits)


class NTXent(nn.Module):
    r"""NT-Xent, equation 1 of the paper: normalised temperature-scaled cross-entropy.

        l(a, p) = -log( exp(s_ap / tau) / (exp(s_ap / tau) + sum_n exp(s_an / tau)) )

    s are cosines. The loss is the mean over all positive pairs (a, p), each way round. In the paper
    two views of one image are a class, so that every anchor has one positive and all the rest of the
    batch are its negatives. Here labels say what is positive, and with more than one positive per
    anchor each is told from the negatives alone: the anchor's other positives are left out of the
    denominator. (SupCon keeps them in; with two images per class both losses are the same.) Anchors
    without a positive carry no term; a pair whose anchor has no negative has the value 0.

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
            loss = mean_over(nt_xent_values(logits, negatives), positives)
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"temperature={self.temperature}"
