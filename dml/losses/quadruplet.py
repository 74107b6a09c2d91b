"""Quadruplet loss: Chen et al., "Beyond Triplet Loss: A Deep Quadruplet Network for Person
Re-Identification", CVPR 2017, arXiv:1704.01719.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dml.losses.pairs import (
    check_finite,
    compare,
    cosine_similarity,
    full_precision,
    pair_masks,
    unit_distances,
)
from dml.types import Embeddings, IndicesTuple, Labels

# Wider than any distance or threshold: keeps the groups apart in one sorted line.
SPAN = 16.0


def hinge_sums(
    thresholds: Float[Tensor, " p"],
    groups: Int[Tensor, " p"],
    values: Float[Tensor, " q"],
    value_groups: Int[Tensor, " q"],
) -> tuple[Tensor, Tensor, Tensor]:
    """For each threshold t, over the values v of its group: (sum of [t - v]_+, how many v < t, how many v).

    Sorts the values once and reads the sums off their running total: O((p + q) log q) where the terms
    are p q. In float64, for the running total of a large batch is long.
    """
    line = values.detach().double() + SPAN * value_groups
    line, order = line.sort()
    total = torch.cat([values.new_zeros(1).double(), values.double()[order].cumsum(0)])
    begin = torch.searchsorted(line, SPAN * groups.double())
    end = torch.searchsorted(line, SPAN * groups + thresholds.detach().double())
    last = torch.searchsorted(line, SPAN * (groups + 1).double())
    below = end - begin
    sums = below * thresholds.double() - (total[end] - total[begin])
    return sums, below, last - begin


def quadruplet_sums(
    distances: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    row_classes: Int[Tensor, " n"],
    column_classes: Int[Tensor, " m"],
    margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over positive pairs (i, j) and negative pairs (l, k) without an image of i's class:
    (sum of [d_ij - d_lk + margin]_+, how many are above 0, how many).
    """
    anchors, columns = positives.nonzero(as_tuple=True)
    thresholds = distances[anchors, columns] + margin
    rows, others = negatives.nonzero(as_tuple=True)
    values = distances[rows, others]
    groups = row_classes[anchors]
    everywhere = hinge_sums(thresholds, torch.zeros_like(groups), values, torch.zeros_like(rows))
    in_rows = hinge_sums(thresholds, groups, values, row_classes[rows])
    in_columns = hinge_sums(thresholds, groups, values, column_classes[others])
    total, above, count = (
        (a - b - c).sum() for a, b, c in zip(everywhere, in_rows, in_columns, strict=True)
    )
    return total, above, count


def triplet_sums(
    distances: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over triplets: (sum of [d_ij - d_ik + margin]_+, how many are above 0, how many)."""
    anchors, columns = positives.nonzero(as_tuple=True)
    rows, others = negatives.nonzero(as_tuple=True)
    sums = hinge_sums(distances[anchors, columns] + margin, anchors, distances[rows, others], rows)
    total, above, count = (part.sum() for part in sums)
    return total, above, count


class Quadruplet(nn.Module):
    r"""Quadruplet loss: positive pairs nearer than their anchor's negatives, and than any other pair.

        L = mean_(i,j,k)   [d_ij - d_ik + alpha_1]_+
          + mean_(i,j,k,l) [d_ij - d_lk + alpha_2]_+

    i and j are of one class, k of another, l of a third; d is the squared Euclidean distance. The first
    term is the triplet loss, the second spreads whole classes apart. All triplets and quadruplets of
    the batch count; the paper sums, a mean is that up to a factor. In place of the paper's learned
    metric stands the embedding's distance, and its margins, which follow the mean distances of the
    batch (the second at half the first), are fixed here. With a miner the positive and negative pairs
    are those given. Anchors without a positive or a negative are in no triplet.

    Geometry: cosine; embeddings are normalised inside, so d lies in [0, 4].

    Args:
        margin: alpha_1, in (0, 4).
        pair_margin: alpha_2, in (0, 4); the paper wants it below alpha_1.
        average: "active" divides by the terms with a value above 0, so that many satisfied ones do
            not drown the rest; "all" by all terms.

    Shapes: embeddings [n, d], labels [n] -> scalar. Time O(n^2 log n) and memory O(n^2), though there
    are O(n^4) quadruplets. A batch without a triplet gives 0 with gradient 0.
    """

    def __init__(self, margin: float = 0.2, pair_margin: float = 0.1, average: str = "active"):
        super().__init__()
        if average not in ("active", "all"):
            raise ValueError(f"average={average!r} must be 'active' or 'all'")
        self.margin = margin
        self.pair_margin = pair_margin
        self.average = average

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
            masks = pair_masks(batch, indices_tuple)
            similarities = cosine_similarity(batch.embeddings, batch.reference)
            distances = unit_distances(similarities, squared=True)
            both = torch.cat([batch.labels, batch.reference_labels]).unique(return_inverse=True)[1]
            rows, columns = both[: len(batch.labels)], both[len(batch.labels) :]
            loss = self._mean(*triplet_sums(distances, *masks, self.margin))
            loss = loss + self._mean(
                *quadruplet_sums(distances, *masks, rows, columns, self.pair_margin)
            )
            loss = loss.to(distances.dtype)
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def _mean(self, total: Tensor, above: Tensor, count: Tensor) -> Tensor:
        """The sum over the terms that `average` names."""
        return total / (above if self.average == "active" else count).clamp(min=1)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"margin={self.margin}, pair_margin={self.pair_margin}, average={self.average}"
