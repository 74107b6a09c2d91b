"""SphereFace: Liu et al., "SphereFace: Deep Hypersphere Embedding for Face Recognition", CVPR 2017,
arXiv:1704.08063.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.classification import (
    class_centres,
    classification_loss,
    cosines_to,
    on_own_class,
    with_own_class,
)
from dml.types import Embeddings, IndicesTuple, Labels


def cosine_of_multiple(cosine: Float[Tensor, "*n"], factor: int) -> Float[Tensor, "*n"]:
    """cos(m theta) from cos(theta), as Chebyshev's polynomial: its slope is finite everywhere."""
    before, now = torch.ones_like(cosine), cosine
    for _ in range(factor - 1):
        before, now = now, 2 * cosine * now - before
    return now


def psi(cosine: Float[Tensor, "*n"], margin: int) -> Float[Tensor, "*n"]:
    """(-1)^k cos(m theta) - 2 k with theta in [k pi/m, (k + 1) pi/m]: falls from 1 to 1 - 2 m."""
    angle = cosine.detach().clamp(-1, 1).acos()
    k = (angle * (margin / math.pi)).floor().clamp(max=margin - 1)
    sign = 1 - 2 * (k % 2)
    return sign * cosine_of_multiple(cosine, margin) - 2 * k


class SphereFace(nn.Module):
    r"""SphereFace (A-Softmax): a multiplicative margin on the own class's angle.

        L = -log( exp(|x| f(theta_y)) / (exp(|x| f(theta_y)) + sum_{z != y} exp(|x| cos theta_z)) )
        f(theta) = (lambda cos theta + psi(theta)) / (1 + lambda)
        psi(theta) = (-1)^k cos(m theta) - 2 k   for theta in [k pi / m, (k + 1) pi / m]

    theta_z is the angle between embedding x and the centre of class z, whose length plays no part;
    that of the embedding does. psi continues cos(m theta) so that it keeps falling. The loss is the
    mean over the batch. Every sample counts, whatever else is in the batch. lambda = 0 is the paper's
    equation 7, which hardly trains from the start. The authors therefore begin at lambda = 1000 and
    come down to 5 within about 1,700 steps; here lambda stays where it is put.

    Geometry: embeddings keep their length in training (the encoder does not normalise) and are
    compared by cosine afterwards.

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        margin: m, a whole number of at least 1; 1 has no margin.
        blend: lambda, at least 0: weight of the plain cosine beside psi.

    Parameters: proxies [num_classes, embedding_dim], the class centres, drawn normal with expected
    length 1.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(self, num_classes: int, embedding_dim: int, margin: int = 4, blend: float = 5.0):
        super().__init__()
        if margin != int(margin) or margin < 1:
            raise ValueError(f"margin={margin} must be a whole number of at least 1")
        self.num_classes = num_classes
        self.margin = int(margin)
        self.blend = blend
        self.proxies = class_centres(num_classes, embedding_dim)

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """Cosines with the own class's margin, times the embedding's length."""
        cosines = cosines_to(embeddings, self.proxies)
        own = on_own_class(cosines, labels)
        own = (self.blend * own + psi(own, self.margin)) / (1 + self.blend)
        lengths = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        return lengths * with_own_class(cosines, labels, own)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        return classification_loss(self, embeddings, labels, indices_tuple)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"num_classes={self.num_classes}, margin={self.margin}, blend={self.blend}"
