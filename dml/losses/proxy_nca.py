"""Proxy-NCA: Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017,
arXiv:1703.07464; ProxyNCA++: Teh et al., ECCV 2020, arXiv:2004.01113.
"""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dml.losses.classification import check_samples, class_centres, cosines_to
from dml.losses.pairs import check_finite, full_precision
from dml.types import Embeddings, IndicesTuple, Labels


def proxy_nca_rows(
    similarities: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    scale: float,
    positive_in_denominator: bool,
) -> Float[Tensor, " n"]:
    """One value per sample, from the cosines between samples and proxies."""
    # -scale * d^2 = 2 * scale * cos - 2 * scale, and the constant cancels in the quotient.
    logits = 2 * scale * similarities
    if positive_in_denominator:
        return F.cross_entropy(logits, labels, reduction="none")
    own = labels[:, None]
    others = logits.scatter(1, own, -math.inf)
    return others.logsumexp(dim=1) - logits.gather(1, own).squeeze(1)


class ProxyNCA(nn.Module):
    r"""Proxy-NCA as in the paper, or in the form of ProxyNCA++.

        paper:  L = -log( exp(-t d^2(x, p_y)) / sum_{z != y} exp(-t d^2(x, p_z)) )
        ++:     L = -log( exp(-t d^2(x, p_y)) / sum_z        exp(-t d^2(x, p_z)) )

    d is the Euclidean distance between normalised embedding x and normalised proxy p, y the
    sample's class. The loss is the mean over the batch. The paper's form leaves the sample's own
    proxy out of the denominator, hence may be far below 0. Every sample counts, whatever else is
    in the batch.

    Geometry: cosine; embeddings and proxies are normalised inside.

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        scale: t, above 0: factor of the *squared* distance. Multiplying both vectors by 3, as
            public implementations do, is scale 9; it is also ProxyNCA++'s temperature 1/9.
        positive_in_denominator: False is the paper, True is ProxyNCA++.

    Parameters: proxies [num_classes, embedding_dim], drawn normal with expected length 1.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 9.0,
        positive_in_denominator: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.scale = scale
        self.positive_in_denominator = positive_in_denominator
        self.proxies = class_centres(num_classes, embedding_dim)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        with full_precision(embeddings):
            embeddings, labels = check_samples(
                "ProxyNCA", self.num_classes, embeddings, labels, indices_tuple
            )
            similarities = cosines_to(embeddings, self.proxies)
            rows = proxy_nca_rows(similarities, labels, self.scale, self.positive_in_denominator)
            loss = rows.mean()
        return check_finite(loss, embeddings=embeddings, proxies=self.proxies)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"num_classes={self.num_classes}, scale={self.scale}, "
            f"positive_in_denominator={self.positive_in_denominator}"
        )
