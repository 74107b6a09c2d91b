"""FastAP: Cakir et al., "Deep Metric Learning to Rank", CVPR 2019."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    check_finite,
    compare,
    cosine_similarity,
    full_precision,
    mean_over,
    pair_masks,
    refuse_tuple,
    unit_distances,
)
from dml.types import Embeddings, IndicesTuple, Labels


def soft_histogram(
    squares: Float[Tensor, "n m"], weights: Bool[Tensor, "n m"], bins: int
) -> Float[Tensor, "n b"]:
    """Triangular histogram of each row's squared distances over bins + 1 centres from 0 to 4."""
    position = squares * (bins / 4)
    # A distance lies between two centres and shares its weight of 1 between them.
    # NaN is reported once the loss is known; until then it must not be an index.
    lower = position.detach().floor().nan_to_num(0).clamp(0, bins - 1)
    share = torch.where(weights, position - lower, 0)
    rest = torch.where(weights, 1 - (position - lower), 0)
    index = lower.long()
    histogram = squares.new_zeros(len(squares), bins + 1)
    return histogram.scatter_add(1, index, rest).scatter_add(1, index + 1, share)


def fast_ap_rows(
    squares: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
    bins: int,
) -> Float[Tensor, " n"]:
    """1 - FastAP per query; 1 where it has no positive."""
    of_positives = soft_histogram(squares, positives, bins)
    nearer_positives = of_positives.cumsum(dim=1)
    nearer = (of_positives + soft_histogram(squares, negatives, bins)).cumsum(dim=1)
    # An empty beginning has precision 0 / 0 and no positive to weigh it.
    empty = nearer <= 0
    precision = torch.where(empty, 0, nearer_positives / torch.where(empty, 1, nearer))
    return 1 - (of_positives * precision).sum(dim=1) / positives.sum(dim=1).clamp(min=1)


class FastAP(nn.Module):
    r"""FastAP: one minus average precision, computed on a histogram of distances.

        L = mean_q (1 - 1/|P| sum_b h+_b H+_b / H_b)
        h_b = sum_i max(0, 1 - |d_i^2 - z_b| / Delta),  z_b = b Delta,  Delta = 4 / B,  b = 0..B

    d_i^2 is the squared Euclidean distance between query q and item i, in [0, 4]; h counts all items
    softly, h+ the positives P alone, and H, H+ are their sums up to bin b. Each embedding of the batch
    is a query against all others, in any numbers and any order; the query itself is not counted. The
    mean runs over queries that have a positive.

    Geometry: cosine; embeddings are normalised inside.

    Args:
        bins: B, at least 1. Items within one bin count as tied.

    Shapes: embeddings [n, d], labels [n] -> scalar in [0, 1). Memory O(n^2). A batch without a
    positive pair gives 0 with gradient 0.
    """

    def __init__(self, bins: int = 10):
        super().__init__()
        self.bins = bins

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
        refuse_tuple(indices_tuple, "FastAP", "a rank is a rank among all items, not some pairs")
        with full_precision(embeddings):
            batch = compare(embeddings, labels, reference, reference_labels, self_slots)
            positives, negatives = pair_masks(batch)
            similarities = cosine_similarity(batch.embeddings, batch.reference)
            squares = unit_distances(similarities, squared=True)
            rows = fast_ap_rows(squares, positives, negatives, self.bins)
            loss = mean_over(rows, positives.any(dim=1))
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"bins={self.bins}"
