"""Focal loss: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.classification import Classifier, classification_rows
from dml.losses.pairs import check_finite, full_precision
from dml.types import Embeddings, IndicesTuple, Labels


def focal_values(cross_entropy: Float[Tensor, " n"], gamma: float) -> Float[Tensor, " n"]:
    """(1 - p)^gamma times the cross-entropy -log p of each sample."""
    missing = -torch.expm1(-cross_entropy)
    # A gamma below 1 has slope infinity at p = 1.
    return missing.clamp(min=torch.finfo(missing.dtype).tiny) ** gamma * cross_entropy


class Focal(nn.Module):
    r"""Focal loss over the logits of another classification loss: easy samples count less.

        L = -(1 - p_y)^gamma log p_y,   p the softmax of that loss's logits

    The loss is the mean over the batch. Every sample counts, whatever else is in the batch. With gamma
    = 0 it is the wrapped loss itself; what such a loss adds to the cross-entropy (label smoothing,
    pulls on its centres) is left out. The paper's weight alpha, which balances foreground against
    background, has no counterpart among many classes.

    Geometry: that of the wrapped loss; NormSoftmax, which the shipped file wraps, normalises inside.

    Args:
        classifier: a loss with `logits`, such as NormSoftmax, CosFace or SubCenterArcFace.
        gamma: at least 0.

    Parameters: those of the wrapped loss.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(self, classifier: Classifier, gamma: float = 2.0):
        super().__init__()
        if not hasattr(classifier, "logits"):
            raise TypeError(f"{type(classifier).__name__} has no logits for Focal to weigh")
        self.classifier = classifier
        self.num_classes = classifier.num_classes
        self.gamma = gamma

    @property
    def proxies(self) -> nn.Parameter:
        """The wrapped loss's."""
        return self.classifier.proxies

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """The wrapped loss's."""
        return self.classifier.logits(embeddings, labels)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        with full_precision(embeddings):
            embeddings, labels, rows = classification_rows(self, embeddings, labels, indices_tuple)
            loss = focal_values(rows, self.gamma).mean()
        return check_finite(loss, embeddings=embeddings, proxies=self.proxies)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"gamma={self.gamma}"
