"""Shapes and element types that the public signatures share."""

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Embeddings: TypeAlias = Float[Tensor, "n d"]
Labels: TypeAlias = Int[Tensor, " n"]
# What pytorch-metric-learning's miners return: triplets (anchor, positive, negative), or pairs
# (anchor, positive, anchor, negative); each entry an int64 vector of positions in the batch.
IndicesTuple: TypeAlias = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]
