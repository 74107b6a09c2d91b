"""Normalised softmax: Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning",
BMVC 2019, arXiv:1811.12649.
"""

from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.classification import class_centres, classification_loss, cosines_to
from dml.types import Embeddings, IndicesTuple, Labels


class NormSoftmax(nn.Module):
    r"""Normalised softmax loss: cross-entropy over the cosines to class centres, without a bias.

        L = -log( exp(x . p_y / sigma) / sum_z exp(x . p_z / sigma) )

    x is the normalised embedding, p_z the normalised centre of class z, y the sample's class. The
    loss is the mean over the batch. Every sample counts, whatever else is in the batch.

    Geometry: cosine; embeddings and class centres are normalised inside. (The paper puts a layer
    normalisation before the embedding's: head.layer_norm=true.)

    Args:
        num_classes: number of training classes, at least 2; labels run from 0 to num_classes - 1.
        embedding_dim: dimension of the embeddings.
        temperature: sigma, above 0. Small values follow the hardest classes.

    Parameters: proxies [num_classes, embedding_dim], the class centres, drawn normal with expected
    length 1.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(self, num_classes: int, embedding_dim: int, temperature: float = 0.05):
        super().__init__()
        self.num_classes = num_classes
        self.temperature = temperature
        self.proxies = class_centres(num_classes, embedding_dim)

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """Cosines over the temperature; the labels play no part."""
        del labels
        return cosines_to(embeddings, self.proxies) / self.temperature

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label outside 0..num_classes-1."""
        return classification_loss(self, embeddings, labels, indices_tuple)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"num_classes={self.num_classes}, temperature={self.temperature}"
