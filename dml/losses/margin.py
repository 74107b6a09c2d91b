"""Margin loss: Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017,
arXiv:1706.07567.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dml.losses.pairs import (
    as_pairs,
    check_classes,
    check_finite,
    compare,
    cosine_similarity,
    full_precision,
    pair_masks,
    unit_distances,
)
from dml.types import Embeddings, IndicesTuple, Labels


def margin_values(
    distances: Float[Tensor, "*p"],
    positives: Bool[Tensor, "*p"],
    boundary: Float[Tensor, "*#p"],
    margin: float,
) -> Float[Tensor, "*p"]:
    """One value per pair, as a positive where `positives` says so and as a negative elsewhere."""
    beyond = distances - boundary
    return (margin + torch.where(positives, beyond, -beyond)).clamp(min=0)


class Margin(nn.Module):
    r"""Margin loss: pairs must lie on their side of a learned boundary beta.

        l(a, p) = [alpha + d_ap - beta_a]_+        l(a, n) = [alpha - d_an + beta_a]_+
        L = 1/m (sum of all l + nu sum_(a,p) beta_a),  m the number of pairs with l > 0

    d is the Euclidean distance between normalised embeddings, beta_a the boundary of the anchor's
    class, or one for all. The sum runs over the pairs of the batch, or those of a miner: the paper
    belongs to miner=distance_weighted, which draws one negative for each positive pair, and a pair
    drawn twice counts twice. The paper's third boundary, per image, is left out. Anchors without a
    pair carry no term.

    Geometry: cosine; embeddings are normalised inside, so d lies in [0, 2].

    Args:
        num_classes: number of training classes; labels run from 0 to num_classes - 1. With
            per_class=False the labels may be any.
        margin: alpha, above 0: half the width of the band between positives and negatives.
        initial_beta: every boundary at first, in (0, 2).
        nu: weight of the boundaries themselves, at least 0. A positive one keeps them small.
        per_class: one boundary per class; else one for all.

    Parameters: beta [num_classes] or [1].
    Shapes: embeddings [n, d], labels [n] -> scalar. A batch without a pair gives 0 with gradient 0.
    """

    def __init__(
        self,
        num_classes: int,
        margin: float = 0.2,
        initial_beta: float = 1.2,
        nu: float = 0.0,
        per_class: bool = True,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.margin = margin
        self.nu = nu
        self.per_class = per_class
        count = num_classes if per_class else 1
        self.beta = nn.Parameter(torch.full((count,), float(initial_beta)))

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
            beta = self.beta.to(batch.embeddings.dtype)
            if self.per_class:
                check_classes(batch.labels, self.num_classes)
                boundary = beta[batch.labels]
            else:
                boundary = beta.expand(len(batch.labels))
            similarities = cosine_similarity(batch.embeddings, batch.reference)
            distances = unit_distances(similarities, squared=False)
            if indices_tuple is None:
                positives, negatives = pair_masks(batch)
                used = positives | negatives
                values = margin_values(distances, positives, boundary[:, None], self.margin)
                values = torch.where(used, values, 0)
                boundaries = (positives.sum(dim=1) * boundary).sum()
            else:
                a, p, b, n = as_pairs(indices_tuple, batch)
                anchors, others = torch.cat([a, b]), torch.cat([p, n])
                positives = torch.arange(len(anchors), device=anchors.device) < len(a)
                own = anchors if batch.self_slots is None else batch.self_slots[anchors]
                used = others != own
                boundary = boundary[anchors]
                values = margin_values(distances[anchors, others], positives, boundary, self.margin)
                values = torch.where(used, values, 0)
                boundaries = (boundary * (positives & used)).sum()
            active = (values.detach() > 0).sum().clamp(min=1)
            loss = (values.sum() + self.nu * boundaries) / active
        return check_finite(loss, embeddings=batch.embeddings, reference=batch.reference)

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return (
            f"num_classes={self.num_classes}, margin={self.margin}, nu={self.nu}, "
            f"per_class={self.per_class}"
        )
