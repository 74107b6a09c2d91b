"""SNR contrastive loss: Yuan et al., "Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric
Learning", CVPR 2019, arXiv:1904.02616.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.pairs import check_finite, compare, full_precision, mean_over, pair_masks
from dml.types import Embeddings, IndicesTuple, Labels


def snr_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """var(x_i - y_j) / var(x_i); infinite for a row x_i whose elements are all equal."""
    # The quotient does not change with a common factor; this one keeps squares from overflowing.
    largest = torch.maximum(x.detach().abs().max(), y.detach().abs().max())
    x, y = (z / torch.where(largest > 0, largest, 1) for z in (x, y))
    x, y = (z - z.mean(dim=1, keepdim=True) for z in (x, y))
    signal = x.square().sum(dim=1)[:, None]
    noise = (signal + y.square().sum(dim=1) - 2 * (x @ y.T)).clamp(min=0)
    return noise / signal


class SNRContrastive(nn.Module):
    r"""Contrastive loss on the signal-to-noise distance, with the paper's pull to zero mean.

        d_ij = var(x_i - x_j) / var(x_i)
        positive pair:  [d - m_p]_+        negative pair:  [m_n - d]_+
        L = mean over positive pairs + mean over negative pairs + w/n sum_i |sum_k x_ik|

    var is the variance over the d elements of a vector, i the anchor. The distance is not symmetric:
    each pair counts each way round. As in `Contrastive`, the means run over the pairs with a value
    above 0. The last term, over the anchors that have a pair, holds the mean of each embedding near 0, as
    the distance presumes. Anchors whose elements are all equal have no signal; they are in no pair.

    Geometry: euclidean; embeddings keep their length. For one query the distance orders items as the
    Euclidean one does, once the means are 0.

    Args:
        positive_margin: m_p, at least 0: positive pairs this near have the value 0.
        negative_margin: m_n, above 0: negative pairs this far have the value 0. Independent
            embeddings of equal variance have the distance 2.
        mean_weight: w, at least 0.

    Shapes: embeddings [n, d] with d of at least 2, labels [n] -> scalar. Where there is no positive
    (negative) pair, that mean is 0. A batch without a pair gives 0 with gradient 0.
    """

    def __init__(
        self,
        positive_margin: float = 0.0,
        negative_margin: float = 1.0,
        mean_weight: float = 0.005,
    ):
        super().__init__()
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.mean_weight = mean_weight

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
            if batch.embeddings.shape[1] < 2:
                raise ValueError("SNRContrastive needs embeddings of at least 2 dimensions")
            positives, negatives = pair_masks(batch, indices_tuple)
            used = (positives | negatives).any(dim=1)
            constant = (batch.embeddings == batch.embeddings[:, :1]).all(dim=1, keepdim=True)
            positives, negatives = positives & ~constant, negatives & ~constant
            # A stand-in row keeps 0 / 0 out of the gradient.
            ramp = torch.arange(batch.embeddings.shape[1], device=constant.device)
            anchors = torch.where(constant, ramp.to(batch.embeddings), batch.embeddings)
            distances = snr_distances(anchors, batch.reference)
            beyond = F.relu(distances - self.positive_margin)
            within = F.relu(self.negative_margin - distances)
            loss = mean_over(beyond, positives & (beyond > 0))
            loss = loss + mean_over(within, negatives & (within > 0))
            off_zero = mean_over(batch.embeddings.sum(dim=1).abs(), used)
            loss = loss + self.mean_weight * off_zero
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"positive_margin={self.positive_margin}, negative_margin={self.negative_margin}, "
            f"mean_weight={self.mean_weight}"
        )
