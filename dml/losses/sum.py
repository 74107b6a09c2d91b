"""Several losses at once, weighted."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dml.types import Embeddings, IndicesTuple, Labels


class Sum(nn.Module):
    r"""Weighted sum of losses on the same embeddings.

        L = sum_k w_k L_k(embeddings, labels)

    A miner's choice goes to the losses that take it; the others see the whole batch. Compared with a
    memory (`reference`), only the losses between embeddings have a term, since proxies are no part
    of a memory.

    Geometry: that of its losses, which must be one.

    Args:
        losses: one or more.
        weights: w, one per loss.
        takes_miner: per loss, whether it takes an indices_tuple.
        takes_reference: per loss, whether it can compare with a memory.

    Parameters: those of its losses.
    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self,
        losses: Sequence[nn.Module],
        weights: Sequence[float],
        takes_miner: Sequence[bool],
        takes_reference: Sequence[bool],
    ):
        super().__init__()
        if not len(losses) == len(weights) == len(takes_miner) == len(takes_reference):
            raise ValueError(
                f"{len(losses)} losses, {len(weights)} weights, {len(takes_miner)} takes_miner and "
                f"{len(takes_reference)} takes_reference: give as many of each"
            )
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(weights)
        self.takes_miner, self.takes_reference = tuple(takes_miner), tuple(takes_reference)

    def forward(
        self,
        embeddings: Embeddings,
        labels: Labels,
        indices_tuple: IndicesTuple | None = None,
        *,
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Tensor | None = None,
        self_slots: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of a batch; see `dml.losses` for the arguments."""
        terms = []
        for k, loss in enumerate(self.losses):
            chosen = indices_tuple if self.takes_miner[k] else None
            if reference is None:
                terms.append(self.weights[k] * loss(embeddings, labels, chosen))
            elif self.takes_reference[k]:
                term = loss(
                    embeddings,
                    labels,
                    chosen,
                    reference=reference,
                    reference_labels=reference_labels,
                    self_slots=self_slots,
                )
                terms.append(self.weights[k] * term)
        if not terms:
            raise ValueError("none of the losses can compare with a reference")
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"weights={self.weights}"
