"""ArcFace: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
arXiv:1801.07698.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dml.losses.pairs import (
    check_batch,
    check_classes,
    check_finite,
    full_precision,
    refuse_tuple,
    unit,
)
from dml.types import Embeddings, IndicesTuple, Labels


def arcface_logits(
    cosines: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    margin: float,
    scale: float,
) -> Float[Tensor, "n c"]:
    """Scaled cosines, the one of the own class taken at an angle larger by `margin`."""
    own = labels[:, None]
    # At +-1 the angle has slope infinity in the cosine; rounding may even put a cosine beyond 1.
    limit = 1 - torch.finfo(cosines.dtype).eps
    cosine = cosines.gather(1, own).clamp(-limit, limit)
    sine = ((1 - cosine) * (1 + cosine)).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    # Beyond theta = pi - m, cos(theta + m) would rise again and push the sample away from its class.
    beyond = cosine - margin * math.sin(margin)
    target = torch.where(cosine > -math.cos(margin), turned, beyond)
    return scale * cosines.scatter(1, own, target)


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
        if margin_degrees is not None:
            radians = math.radians(margin_degrees)
            raise TypeError(f"ArcFace takes its margin in radians: margin={radians:.4g}")
        if not 0 <= margin <= math.pi / 2:
            raise ValueError(
                f"margin={margin:g} must lie in [0, pi/2] radians; "
                f"{margin:g} degrees are margin={math.radians(margin):.4g}"
            )
        self.num_classes = num_classes
        self.margin = margin
        self.scale = scale
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_dim) / embedding_dim**0.5)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        refuse_tuple(
            indices_tuple, "ArcFace", "it compares samples with class centres, not in pairs"
        )
        with full_precision(embeddings):
            embeddings, labels = check_batch(embeddings, labels)
            check_classes(labels, self.num_classes)
            cosines = unit(embeddings) @ unit(self.proxies.to(embeddings.dtype)).T
            loss = F.cross_entropy(arcface_logits(cosines, labels, self.margin, self.scale), labels)
        return check_finite(loss, embeddings=embeddings, proxies=self.proxies)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"num_classes={self.num_classes}, margin={self.margin}, scale={self.scale}"
