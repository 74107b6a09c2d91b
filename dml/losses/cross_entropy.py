"""Softmax cross-entropy: Boudiaf et al., "A Unifying Mutual Information View of Metric Learning:
Cross-Entropy vs. Pairwise Losses", ECCV 2020, arXiv:2003.08983; label smoothing: Szegedy et al.,
"Rethinking the Inception Architecture for Computer Vision", CVPR 2016, arXiv:1512.00567.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.classification import class_centres, classification_loss, linear_logits
from dml.types import Embeddings, IndicesTuple, Labels


class CrossEntropy(nn.Module):
    r"""Cross-entropy of a linear classifier on the embedding, with label smoothing.

        L = -sum_z q_z log( exp(w_z . x + b_z) / sum_k exp(w_k . x + b_k) )
        q_z = (1 - epsilon) [z = y] + epsilon / C

    x is the embedding as the encoder gives it, y the sample's class, C the number of classes. The
    loss is the mean over the batch. Every sample counts, whatever else is in the batch.

    Geometry: embeddings keep their length in training (the encoder does not normalise) and are
    compared by cosine afterwards, as the paper chooses its models.

    Args:
        num_classes: C, number of training classes, at least 2; labels run from 0 to C - 1.
        embedding_dim: dimension of the embeddings.
        label_smoothing: epsilon, in [0, 1).
        with_bias: whether there is a bias b.

    Parameters: proxies [num_classes, embedding_dim], the weights w, drawn normal with expected
    length 1; bias [num_classes], 0 at first, unless there is none.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        label_smoothing: float = 0.1,
        with_bias: bool = True,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.proxies = class_centres(num_classes, embedding_dim)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if with_bias else None

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """The linear classifier; the labels play no part."""
        del labels
        return linear_logits(embeddings, self.proxies, self.bias)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        return classification_loss(self, embeddings, labels, indices_tuple, self.label_smoothing)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"num_classes={self.num_classes}, label_smoothing={self.label_smoothing}, "
            f"with_bias={self.bias is not None}"
        )
