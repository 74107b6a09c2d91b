"""CosFace: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018,
arXiv:1801.09414; the same formula as AM-Softmax, Wang et al., arXiv:1801.05599.
"""

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


class CosFace(nn.Module):
    r"""CosFace: cross-entropy over cosines, with a margin taken off the own class's cosine.

        L = -log( exp(s (cos theta_y - m))
                / (exp(s (cos theta_y - m)) + sum_{z != y} exp(s cos theta_z)) )

    theta_z is the angle between the embedding and the centre of class z. The loss is the mean over
    the batch. Every sample counts, whatever else is in the batch. With m = 0 this is the normalised
    softmax at temperature 1 / s.

    Geometry: cosine; embeddings and class centres are normalised inside.

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        margin: m, in [0, 1): a difference of cosines.
        scale: s, above 0.

    Parameters: proxies [num_classes, embedding_dim], the class centres, drawn normal with expected
    length 1.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, margin: float = 0.35, scale: float = 64.0
    ):
        super().__init__()
        self.num_classes = num_classes
        self.margin = margin
        self.scale = scale
        self.proxies = class_centres(num_classes, embedding_dim)

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """Scaled cosines, that of the own class less the margin."""
        cosines = cosines_to(embeddings, self.proxies)
        own = on_own_class(cosines, labels) - self.margin
        return self.scale * with_own_class(cosines, labels, own)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        return classification_loss(self, embeddings, labels, indices_tuple)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"num_classes={self.num_classes}, margin={self.margin}, scale={self.scale}"
