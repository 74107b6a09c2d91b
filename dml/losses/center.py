"""Center loss: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition",
ECCV 2016.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dml.losses.classification import class_centres, classification_rows, linear_logits
from dml.losses.pairs import check_finite, full_precision
from dml.types import Embeddings, IndicesTuple, Labels


def center_rows(
    embeddings: Embeddings, labels: Int[Tensor, " n"], centers: Float[Tensor, "c d"]
) -> Float[Tensor, " n"]:
    """Half the squared distance of each sample to its class's centre."""
    return (embeddings - centers.to(embeddings.dtype)[labels]).square().sum(dim=1) / 2


class Center(nn.Module):
    r"""Softmax cross-entropy with center loss.

        L = mean_i ( -log softmax_y(W x_i + b) + lambda/2 |x_i - c_y|^2 )

    x_i is the embedding as the encoder gives it, y its class and c_y that class's centre. The first
    term tells classes apart, the second draws each together. Every sample counts, whatever else is in
    the batch. The centres are learned by the optimizer from the loss's own gradient. The paper moves
    them by hand instead, each by alpha = 0.5 of sum (c - x) / (1 + count): the same direction at
    another rate, and the rate is what lr_scale is for.

    Geometry: embeddings keep their length in training (the encoder does not normalise) and are
    compared by cosine afterwards, as in the paper.

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        center_weight: lambda, at least 0.

    Parameters: proxies [num_classes, embedding_dim], the classifier's weights W, and centers, of the
    same shape, both drawn normal with expected length 1; bias [num_classes], 0 at first.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(self, num_classes: int, embedding_dim: int, center_weight: float = 0.003):
        super().__init__()
        self.num_classes = num_classes
        self.center_weight = center_weight
        self.proxies = class_centres(num_classes, embedding_dim)
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.centers = class_centres(num_classes, embedding_dim)

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """The linear classifier; the labels play no part."""
        del labels
        return linear_logits(embeddings, self.proxies, self.bias)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        with full_precision(embeddings):
            embeddings, labels, rows = classification_rows(self, embeddings, labels, indices_tuple)
            loss = (
                rows + self.center_weight * center_rows(embeddings, labels, self.centers)
            ).mean()
        return check_finite(loss, embeddings=embeddings, proxies=self.proxies, centers=self.centers)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"num_classes={self.num_classes}, center_weight={self.center_weight}"
