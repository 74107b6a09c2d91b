"""SoftTriple: Qian et al., "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling",
ICCV 2019, arXiv:1909.05235.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.classification import (
    class_centres,
    classification_rows,
    cosines_to,
    on_own_class,
    with_own_class,
)
from dml.losses.pairs import check_finite, full_precision, unit, unit_distances
from dml.types import Embeddings, IndicesTuple, Labels


def mean_centre_distance(centres: Float[Tensor, "c k d"]) -> Float[Tensor, ""]:
    """sum_j sum_{t < s} |w_j^t - w_j^s| / (c k (k - 1)), of unit vectors; 0 for one centre each."""
    classes, count, dim = centres.shape
    if count == 1:
        return centres.new_zeros(())
    lines = unit(centres.reshape(-1, dim)).reshape(classes, count, dim)
    first, second = torch.triu_indices(count, count, offset=1, device=centres.device)
    similarities = (lines @ lines.transpose(1, 2))[:, first, second]
    return unit_distances(similarities, squared=False).sum() / (classes * count * (count - 1))


class SoftTriple(nn.Module):
    r"""SoftTriple loss with the paper's regulariser: softmax over classes of several centres each.

        L = -log( exp(lambda (S_y - delta))
                / (exp(lambda (S_y - delta)) + sum_{z != y} exp(lambda S_z)) )
          + tau / (C K (K - 1)) sum_z sum_{t < s} |w_z^t - w_z^s|
        S_z = sum_k softmax_k(x . w_z^k / gamma) x . w_z^k

    x is the normalised embedding and w_z^k the K normalised centres of class z; S_z is a soft
    maximum over them. The first term is the mean over the batch; the second draws the centres of a
    class together, so that K need not be the true number of its clusters. Every sample counts,
    whatever else is in the batch.

    Geometry: cosine; embeddings and centres are normalised inside.

    Args:
        num_classes: C, number of training classes, at least 2; labels run from 0 to C - 1.
        embedding_dim: dimension of the embeddings.
        centers: K, centres per class, at least 1.
        scale: lambda, above 0.
        gamma: above 0: temperature of the soft maximum over a class's centres.
        margin: delta, in [0, 1): a difference of cosines.
        merge_weight: tau, at least 0: weight of the term that draws centres together.

    Parameters: proxies [num_classes * centers, embedding_dim], those of a class one after another,
    drawn normal with expected length 1.
    Shapes: embeddings [n, d], labels [n] -> scalar. Memory O(n C K).
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        centers: int = 10,
        scale: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        merge_weight: float = 0.2,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.centers = centers
        self.scale = scale
        self.gamma = gamma
        self.margin = margin
        self.merge_weight = merge_weight
        self.proxies = class_centres(num_classes * centers, embedding_dim)

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """Scaled soft maxima over each class's centres, that of the own class less the margin."""
        cosines = cosines_to(embeddings, self.proxies).unflatten(1, (self.num_classes, -1))
        similarities = ((cosines / self.gamma).softmax(dim=2) * cosines).sum(dim=2)
        own = on_own_class(similarities, labels) - self.margin
        return self.scale * with_own_class(similarities, labels, own)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        with full_precision(embeddings):
            embeddings, labels, rows = classification_rows(self, embeddings, labels, indices_tuple)
            centres = self.proxies.to(embeddings.dtype).unflatten(0, (self.num_classes, -1))
            loss = rows.mean() + self.merge_weight * mean_centre_distance(centres)
        return check_finite(loss, embeddings=embeddings, proxies=self.proxies)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"num_classes={self.num_classes}, centers={self.centers}, scale={self.scale}, "
            f"gamma={self.gamma}, margin={self.margin}, merge_weight={self.merge_weight}"
        )
