"""ArcFace: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
arXiv:1801.07698.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dml.losses.classification import (
    class_centres,
    classification_loss,
    cosines_to,
    on_own_class,
    with_own_class,
)
from dml.losses.pairs import check_radians
from dml.types import Embeddings, IndicesTuple, Labels


def arcface_logits(
    cosines: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    margin: float,
    scale: float,
) -> Float[Tensor, "n c"]:
    """Scaled cosines, the one of the own class taken at an angle larger by `margin`."""
    # At +-1 the angle has slope infinity in the cosine; rounding may even put a cosine beyond 1.
    limit = 1 - torch.finfo(cosines.dtype).eps
    cosine = on_own_class(cosines, labels).clamp(-limit, limit)
    sine = ((1 - cosine) * (1 + cosine)).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    # Beyond theta = pi - m, cos(theta + m) would rise again and push the sample away from its class.
    beyond = cosine - margin * math.sin(margin)
    target = torch.where(cosine > -math.cos(margin), turned, beyond)
    return scale * with_own_class(cosines, labels, target)


class ArcFace(nn.Module):
    r"""ArcFace: softmax cross-entropy over cosines, with an additive margin on the own class's angle.

        L = -log( exp(s cos(theta_y + m))
                / (exp(s cos(theta_y + m)) + sum_{z != y} exp(s cos theta_z)) )

    theta_z is the angle between the embedding and the centre of class z. The loss is the mean over
    the batch. Where theta_y + m exceeds pi, cos(theta_y) - m sin(m) takes the place of
    cos(theta_y + m), as in the authors' code, so that the loss keeps falling with the angle. Every
    sample counts, whatever else is in the batch. With m = 0 this is the normalised softmax.

    Geometry: cosine; embeddings and class centres are normalised inside.

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        margin: m in *radians*, in [0, pi/2]. (pytorch-metric-learning takes degrees: its 28.6 is 0.5.)
        scale: s, above 0.
        margin_degrees: refused, with the value in radians in the message.

    Parameters: proxies [num_classes, embedding_dim], the class centres W of the paper, drawn normal
    with expected length 1.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float = 0.5,
        scale: float = 64.0,
        *,
        margin_degrees: None = None,
    ):
        super().__init__()
        check_radians("ArcFace", margin, margin_degrees)
        self.num_classes = num_classes
        self.margin = margin
        self.scale = scale
        self.proxies = class_centres(num_classes, embedding_dim)

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """Scaled cosines, with the margin on the own class's angle."""
        cosines = cosines_to(embeddings, self.proxies)
        return arcface_logits(cosines, labels, self.margin, self.scale)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        return classification_loss(self, embeddings, labels, indices_tuple)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"num_classes={self.num_classes}, margin={self.margin}, scale={self.scale}"
