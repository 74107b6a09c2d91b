"""L2 regularisation of embeddings: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss
Objective", NIPS 2016, section 3.2.2.
"""

from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.pairs import check_batch, check_finite, full_precision
from dml.types import Embeddings, Labels


class L2(nn.Module):
    r"""Keeps embeddings short, before they are normalised.

        R = w mean_i |v_i|^2

    Geometry: v is the encoder's output *before* L2 normalisation; on unit vectors R would be constant.

    Args:
        weight: w, above 0.

    Shapes: vectors [n, d], labels [n] (unused) -> scalar.
    """

    def __init__(self, weight: float = 1e-4):
        super().__init__()
        self.weight = weight

    def forward(self, vectors: Embeddings, labels: Labels) -> Float[Tensor, ""]:
        """Penalty of a batch of vectors that are not normalised."""
        with full_precision(vectors):
            vectors, _ = check_batch(vectors, labels, "vectors")
            penalty = self.weight * vectors.square().sum(dim=1).mean()
        return check_finite(penalty, vectors=vectors)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"weight={self.weight}"
