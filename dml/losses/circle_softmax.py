"""Circle loss with class-level labels: Sun et al., "Circle Loss: A Unified Perspective of Pair
Similarity Optimization", CVPR 2020, arXiv:2002.10857. The form for pairs is `dml.losses.Circle`.
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


class CircleSoftmax(nn.Module):
    r"""Circle loss between samples and class centres.

        L = log(1 + sum_{z != y} exp(gamma alpha_z (s_z - m)) exp(-gamma alpha_y (s_y - (1 - m))))
        alpha_y = [1 + m - s_y]_+,   alpha_z = [s_z + m]_+,   both without gradient

    s_z is the cosine between the embedding and the centre of class z, y the sample's class. It is
    the cross-entropy over gamma alpha_y (s_y - (1 - m)) and gamma alpha_z (s_z - m). The loss is the
    mean over the batch. Every sample counts, whatever else is in the batch.

    Geometry: cosine; embeddings and class centres are normalised inside.

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        margin: m, in (0, 1). Own classes are drawn to 1 + m, others to -m.
        scale: gamma, above 0.

    Parameters: proxies [num_classes, embedding_dim], the class centres, drawn normal with expected
    length 1.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, margin: float = 0.25, scale: float = 256.0
    ):
        super().__init__()
        self.num_classes = num_classes
        self.margin = margin
        self.scale = scale
        self.proxies = class_centres(num_classes, embedding_dim)

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """Similarities under the paper's weights and margins."""
        cosines = cosines_to(embeddings, self.proxies)
        own = on_own_class(cosines, labels)
        weight_own = (1 + self.margin - own.detach()).clamp(min=0)
        weight = (cosines.detach() + self.margin).clamp(min=0)
        own = weight_own * (own - (1 - self.margin))
        return self.scale * with_own_class(weight * (cosines - self.margin), labels, own)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        return classification_loss(self, embeddings, labels, indices_tuple)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"num_classes={self.num_classes}, margin={self.margin}, scale={self.scale}"
