"""N-pair loss: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective",
NIPS 2016.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dml.losses.pairs import (
    check_finite,
    compare,
    full_precision,
    masked_logsumexp,
    pair_masks,
)
from dml.types import Embeddings, IndicesTuple, Labels


def n_pair_values(
    products: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
) -> Float[Tensor, " p"]:
    """One value per positive pair; 0 where its anchor has no negative."""
    anchors, columns = positives.nonzero(as_tuple=True)
    nearest = masked_logsumexp(products, negatives)
    return F.softplus(nearest[anchors] - products[anchors, columns])


def first_two(labels: Int[Tensor, " n"]) -> tuple[Int[Tensor, " c"], Int[Tensor, " c"]]:
    """Positions of the first and the second image of every class that has two, class by class."""
    grouped, order = labels.sort(stable=True)
    same_as_next = grouped[1:] == grouped[:-1]
    is_first = torch.ones_like(labels, dtype=torch.bool)
    is_first[1:] = ~same_as_next
    first = (is_first[:-1] & same_as_next).nonzero().flatten()
    return order[first], order[first + 1]


class NPair(nn.Module):
    r"""Multi-class N-pair loss with the L2 penalty that belongs to it.

        L = 1/N sum_i log(1 + sum_{j != i} exp(f_i . f_j+ - f_i . f_i+)) + w mean |f|^2

    A batch holds one pair (f_i, f_i+) of each of N classes: the first image of a class in the batch
    is its anchor, the second its positive, further ones are left out, and so are classes with a
    single image. (sampler=pairs makes batches of exactly two per class.) The negatives of an anchor
    are the positives of the other classes.

    With a miner's tuple or a reference the pairs are those given: the mean over all positive pairs
    (a, p) of log(1 + sum_n exp(f_a . f_n - f_a . f_p)), n over the anchor's negatives.

    Geometry: dot; inner products of embeddings that are *not* normalised. Their length is part of
    the model, and the penalty keeps it small.

    Args:
        l2_weight: w, at least 0; the mean runs over the anchors and positives in use.

    Shapes: embeddings [n, d], labels [n] -> scalar. With one class there is nothing to tell apart:
    the first term is 0. A batch without a positive pair gives 0 with gradient 0.
    """

    def __init__(self, l2_weight: float = 0.001):
        super().__init__()
        self.l2_weight = l2_weight

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
        with full_precision(embeddings):
            batch = compare(embeddings, labels, reference, reference_labels, self_slots)
            if indices_tuple is None and reference is None:
                anchors, others = first_two(batch.labels)
                rows, columns = batch.embeddings[anchors], batch.embeddings[others]
                positives = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
                negatives = ~positives
                used = torch.cat([rows, columns])
            else:
                rows, columns = batch.embeddings, batch.reference
                positives, negatives = pair_masks(batch, indices_tuple)
                in_use = positives.any(dim=1)
                used = rows[in_use | positives.any(dim=0) if reference is None else in_use]
            values = n_pair_values(rows @ columns.T, positives, negatives)
            penalty = used.square().sum() / max(len(used), 1)
            loss = values.sum() / max(len(values), 1) + self.l2_weight * penalty
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"l2_weight={self.l2_weight}"
