"""Island loss: Cai et al., "Island Loss for Learning Discriminative Features in Facial Expression
Recognition", FG 2018, arXiv:1710.03144.
"""

from jaxtyping import Float
from torch import Tensor

from dml.losses.center import Center, center_rows
from dml.losses.classification import classification_rows
from dml.losses.pairs import check_finite, full_precision, unit
from dml.types import Embeddings, IndicesTuple, Labels


def mean_cosine_between(centers: Float[Tensor, "c d"]) -> Float[Tensor, ""]:
    """Mean cosine of two different rows."""
    lines = unit(centers)
    # The sum over all ordered pairs is |sum of lines|^2, which no [c, c] tensor need hold.
    pairs = lines.sum(dim=0).square().sum() - lines.square().sum()
    return pairs / (len(lines) * (len(lines) - 1))


class Island(Center):
    r"""Softmax cross-entropy with island loss: center loss whose centres repel each other.

        L = mean_i ( -log softmax_y(W x_i + b) + lambda/2 |x_i - c_y|^2 )
          + lambda lambda_1 mean_{j != k} (cos(c_j, c_k) + 1)

    x_i is the embedding as the encoder gives it, y its class and c_y that class's centre. Every sample
    counts, whatever else is in the batch, and so does every pair of centres. The paper *sums* over the
    C (C - 1) pairs of its seven classes; the mean keeps the weight's meaning for any number of classes,
    and the paper's lambda_1 is ours over C (C - 1). The centres are learned by the optimizer, as in
    `Center`.

    Geometry: embeddings keep their length in training (the encoder does not normalise) and are
    compared by cosine afterwards.

    Args:
        num_classes: C, number of training classes, at least 2; labels run from 0 to C - 1.
        embedding_dim: dimension of the embeddings.
        center_weight: lambda, at least 0.
        pair_weight: lambda_1, at least 0.

    Parameters: proxies [num_classes, embedding_dim], the classifier's weights W, and centers, of the
    same shape, both drawn normal with expected length 1; bias [num_classes], 0 at first.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        center_weight: float = 0.01,
        pair_weight: float = 10.0,
    ):
        super().__init__(num_classes, embedding_dim, center_weight)
        self.pair_weight = pair_weight

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        with full_precision(embeddings):
            embeddings, labels, rows = classification_rows(self, embeddings, labels, indices_tuple)
            near = center_rows(embeddings, labels, self.centers).mean()
            far = mean_cosine_between(self.centers.to(embeddings.dtype)) + 1
            loss = rows.mean() + self.center_weight * (near + self.pair_weight * far)
        return check_finite(loss, embeddings=embeddings, proxies=self.proxies, centers=self.centers)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"{super().extra_repr()}, pair_weight={self.pair_weight}"
