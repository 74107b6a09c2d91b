"""Spherical embedding constraint (SEC): Zhang et al., "Deep Metric Learning with Spherical Embedding",
NeurIPS 2020, arXiv:2011.02785.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.pairs import check_batch, check_finite, full_precision
from dml.types import Embeddings, Labels


class SphericalEmbeddingConstraint(nn.Module):
    r"""Draws the lengths of all embeddings, before they are normalised, to their mean.

        R = w mean_i (|v_i| - mu)^2
        mu = (1 - rho) mu' + rho mean_i |v_i|,   mu' that of the step before

    The gradient of a loss on directions shrinks with the length of the vector, so vectors of unequal
    length learn at unequal rates. mu has no gradient; at rho = 1 that changes nothing, since the
    deviations from the batch's own mean add up to 0.

    Geometry: v is the encoder's output *before* L2 normalisation.

    Args:
        weight: w, above 0.
        momentum: rho, in (0, 1]: share of the batch in the mean; 1 is the batch's mean alone, less
            is the running mean of the paper's appendix D. The first batch sets it.

    Buffers: mean_length (mu) and started, kept in the checkpoint. They change in training mode only.
    Shapes: vectors [n, d], labels [n] (unused) -> scalar. One row at rho = 1 has the value 0.
    """

    mean_length: Tensor
    started: Tensor

    def __init__(self, weight: float = 1.0, momentum: float = 1.0):
        super().__init__()
        self.weight, self.momentum = weight, momentum
        self.register_buffer("mean_length", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, vectors: Embeddings, labels: Labels) -> Float[Tensor, ""]:
        """Penalty of a batch of vectors that are not normalised."""
        with full_precision(vectors):
            vectors, _ = check_batch(vectors, labels, "vectors")
            lengths = torch.linalg.vector_norm(vectors, dim=1)
            mean = lengths.detach().mean()
            before = torch.where(self.started, self.mean_length.to(mean), mean)
            mean = before + self.momentum * (mean - before)
            if self.training:
                self.mean_length.copy_(mean)
                self.started.fill_(True)
            penalty = self.weight * (lengths - mean).square().mean()
        return check_finite(penalty, vectors=vectors)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"weight={self.weight}, momentum={self.momentum}"
