"""Proxy-Anchor: Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020,
arXiv:2003.13911.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dml.losses.classification import check_samples, cosines_to
from dml.losses.pairs import check_finite, full_precision, masked_logsumexp, mean_over
from dml.types import Embeddings, IndicesTuple, Labels


def proxy_anchor_terms(
    similarities: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    margin: float,
    scale: float,
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """(pull, push) of each proxy; 0 where the batch holds nothing to pull or to push."""
    own = F.one_hot(labels, similarities.shape[1]).bool()
    pull = masked_logsumexp(-scale * (similarities - margin), own, dim=0)
    push = masked_logsumexp(scale * (similarities + margin), ~own, dim=0)
    return F.softplus(pull), F.softplus(push)


class ProxyAnchor(nn.Module):
    r"""Proxy-Anchor loss, equation 4 of the paper: every proxy is an anchor for the whole batch.

        L = 1/|P+| sum_{p in P+} log(1 + sum_{x of p's class}     exp(-alpha (s(x, p) - delta)))
          + 1/|P|  sum_{p in P}  log(1 + sum_{x of other classes} exp( alpha (s(x, p) + delta)))

    s is the cosine, P are all proxies, one per class, and P+ those whose class is in the batch.
    Every sample counts, whatever else is in the batch: it pulls its own proxy and pushes all others.

    Geometry: cosine; embeddings and proxies are normalised inside.

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        margin: delta, in [0, 1): samples are drawn to a cosine above delta with their own proxy and
            driven below -delta with the others.
        scale: alpha, above 0: how strongly the hardest samples of a proxy prevail.

    Parameters: proxies [num_classes, embedding_dim], drawn as in the authors' code (Kaiming normal,
    fan out).
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, margin: float = 0.1, scale: float = 32.0
    ):
        super().__init__()
        self.num_classes = num_classes
        self.margin = margin
        self.scale = scale
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        with full_precision(embeddings):
            embeddings, labels = check_samples(
                "ProxyAnchor", self.num_classes, embeddings, labels, indices_tuple
            )
            similarities = cosines_to(embeddings, self.proxies)
            pull, push = proxy_anchor_terms(similarities, labels, self.margin, self.scale)
            present = torch.zeros_like(pull, dtype=torch.bool).index_fill(0, labels, True)
            loss = mean_over(pull, present) + push.mean()
        return check_finite(loss, embeddings=embeddings, proxies=self.proxies)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"num_classes={self.num_classes}, margin={self.margin}, scale={self.scale}"
