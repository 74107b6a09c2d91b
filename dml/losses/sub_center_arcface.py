"""Sub-center ArcFace: Deng et al., "Sub-center ArcFace: Boosting Face Recognition by Large-Scale
Noisy Web Faces", ECCV 2020.
"""

from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.arcface import arcface_logits
from dml.losses.classification import class_centres, classification_loss, cosines_to
from dml.losses.pairs import check_radians
from dml.types import Embeddings, IndicesTuple, Labels


class SubCenterArcFace(nn.Module):
    r"""Sub-center ArcFace: ArcFace over the nearest of several centres per class.

        L = -log( exp(s cos(theta_y + m))
                / (exp(s cos(theta_y + m)) + sum_{z != y} exp(s cos theta_z)) )
        cos theta_z = max_k x . w_z^k

    x is the normalised embedding, w_z^k the K normalised centres of class z. One centre gathers the
    clean images of a class and leaves mislabelled or rare ones to the others. The loss is the mean
    over the batch. Beyond theta_y + m = pi it continues as in `ArcFace`. Every sample counts, whatever
    else is in the batch. With K = 1 this is ArcFace.

    Geometry: cosine; embeddings and centres are normalised inside.

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        margin: m in *radians*, in [0, pi/2]. (pytorch-metric-learning takes degrees: its 28.6 is 0.5.)
        scale: s, above 0.
        centers: K, centres per class, at least 1.
        margin_degrees: refused, with the value in radians in the message.

    Parameters: proxies [num_classes * centers, embedding_dim], those of a class one after another,
    drawn normal with expected length 1.
    Shapes: embeddings [n, d], labels [n] -> scalar. Memory O(n C K).
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float = 0.5,
        scale: float = 64.0,
        centers: int = 3,
        *,
        margin_degrees: None = None,
    ):
        super().__init__()
        check_radians("SubCenterArcFace", margin, margin_degrees)
        self.num_classes = num_classes
        self.margin = margin
        self.scale = scale
        self.centers = centers
        self.proxies = class_centres(num_classes * centers, embedding_dim)

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """Scaled cosines to the nearest centre of each class, with the own class's margin."""
        cosines = cosines_to(embeddings, self.proxies).unflatten(1, (self.num_classes, -1))
        return arcface_logits(cosines.amax(dim=2), labels, self.margin, self.scale)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        return classification_loss(self, embeddings, labels, indices_tuple)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"num_classes={self.num_classes}, margin={self.margin}, scale={self.scale}, "
            f"centers={self.centers}"
        )
