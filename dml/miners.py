"""Miners: which pairs or triplets of a batch a loss should look at.

An adapter over pytorch-metric-learning's miners. `miner(embeddings, labels)` gives an
indices_tuple, pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
that the losses take as third argument. The functions below are what configs/miner/*.yaml name;
`miner=none` names `none`, so instantiating it gives None and the loss is called without a third
argument.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dml.losses.pairs import full_precision
from dml.types import Embeddings, IndicesTuple, Labels


class Miner:
    """Calls a pytorch-metric-learning miner without gradient, in float32 and outside autocast.

    Distances are between normalised embeddings, so a loss over inner products of un-normalised
    embeddings is mined by angle. Ties and random draws follow torch's global generator.
    """

    def __init__(self, choose: Callable[..., IndicesTuple]):
        self.choose = choose

    @torch.no_grad()
    def __call__(
        self,
        embeddings: Embeddings,
        labels: Labels,
        *,
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Tensor | None = None,
    ) -> IndicesTuple:
        """Positions of the chosen pairs or triplets: anchors in the batch, others in reference."""
        with full_precision(embeddings):
            embeddings = embeddings.detach().float()
            if reference is None:
                return self.choose(embeddings, labels)
            return self.choose(embeddings, labels, reference.detach().float(), reference_labels)

    def __repr__(self) -> str:
        return f"Miner({self.choose})"


def none() -> None:
    """No miner: all pairs or triplets of the batch."""
    return


def semihard(margin: float, squared_distances: bool) -> Miner:
    """Triplets with d(a, p) < d(a, n) <= d(a, p) + margin (FaceNet, section 3.2)."""
    from pytorch_metric_learning import distances, miners

    power = 2 if squared_distances else 1
    distance = distances.LpDistance(normalize_embeddings=True, p=2, power=power)
    choose = miners.TripletMarginMiner(
        margin=margin, type_of_triplets="semihard", distance=distance
    )
    return Miner(choose)


def batch_hard() -> Miner:
    """For each anchor its farthest positive and its nearest negative (Hermans et al.)."""
    from pytorch_metric_learning import miners

    return Miner(miners.BatchHardMiner())


def distance_weighted(cutoff: float, nonzero_loss_cutoff: float) -> Miner:
    """For each positive pair a negative, drawn evenly over the distances (Wu et al.)."""
    from pytorch_metric_learning import miners

    choose = miners.DistanceWeightedMiner(cutoff=cutoff, nonzero_loss_cutoff=nonzero_loss_cutoff)
    return Miner(choose)


def multi_similarity(epsilon: float) -> Miner:
    """Pairs by the rule inside `dml.losses.MultiSimilarity`, for other pair losses."""
    from pytorch_metric_learning import miners

    return Miner(miners.MultiSimilarityMiner(epsilon=epsilon))
