"""What a loss or miner may be given: types and ranges of its options, and what it demands.

One dataclass per file of configs/loss and configs/miner. Torch-free: read before anything slow is
imported. The values live in the YAML, the meaning in the class that `_target_` names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dml.config.ranges import MISSING, Checked, choice, count, number, positive


@dataclass
class LossSchema(Checked):
    """Base of all losses. The class variables are what `check.py`, the module and the evaluator
    read.

    geometry: "cosine" (the encoder ends in L2 normalisation), "dot" or "euclidean" (it does not).
    compares: "pairs", "triplets", "groups" (each needs two images of a class in a batch) or
    "proxies".
    miners: kinds of miner tuples the loss takes; () none.
    verified: equal to its paper by a test of ours.
    hints: option names of other libraries -> what to write here.
    """

    _target_: str = MISSING

    geometry: ClassVar[str] = "cosine"
    compares: ClassVar[str] = "pairs"
    miners: ClassVar[tuple[str, ...]] = ("pairs", "triplets")
    verified: ClassVar[bool] = True
    hints: ClassVar[Mapping[str, str]] = {}


@dataclass
class ParametricLoss(LossSchema):
    """A loss with parameters of its own, here one proxy per class.

    lr_scale: their learning rate is the head's times this.  weight_decay: theirs alone.
    """

    num_classes: int = count(2)
    embedding_dim: int = count(1)
    lr_scale: float = positive()
    weight_decay: float = number(0)

    compares: ClassVar[str] = "proxies"
    miners: ClassVar[tuple[str, ...]] = ()


@dataclass
class Contrastive(LossSchema):
    """Contrastive loss."""

    positive_margin: float = number(0, 2, open_high=True, note="The paper has none: 0.")
    negative_margin: float = number(
        0, 2, open_low=True, note="It is a distance of unit vectors, at most 2."
    )
    squared_hinge: bool = MISSING
    average: str = choice("active", "all")


@dataclass
class Triplet(LossSchema):
    """FaceNet's triplet loss and the soft margin of Hermans et al."""

    variant: str = choice("margin", "soft")
    margin: float = number(
        0, 4, open_low=True, open_high=True, note="The paper uses 0.2 with squared distances."
    )
    squared_distances: bool = MISSING
    average: str = choice("active", "all")

    compares: ClassVar[str] = "triplets"


@dataclass
class LiftedStructure(LossSchema):
    """Lifted structured loss and its generalized form."""

    variant: str = choice("original", "generalized")
    margin: float = number(0, 4, open_low=True, note="Both papers use 1.")


@dataclass
class NPair(LossSchema):
    """Multi-class N-pair loss."""

    l2_weight: float = number(0, note="TensorFlow's reg_lambda of 0.002 is 0.001 here.")

    geometry: ClassVar[str] = "dot"


@dataclass
class MultiSimilarity(LossSchema):
    """Multi-similarity loss with its own mining."""

    alpha: float = positive("The paper uses 2.")
    beta: float = positive("The paper uses 50, its code 40.")
    base: float = number(-1, 1, note="It is a cosine; the paper's code uses 0.5.")
    epsilon: float = number(0, note="The paper uses 0.1; above 2 every pair is kept.")


@dataclass
class Circle(LossSchema):
    """Circle loss."""

    margin: float = number(
        0, 1, open_low=True, open_high=True, note="The paper uses 0.25 (faces) and 0.4 (retrieval)."
    )
    scale: float = positive("The paper uses 256 (faces), 128 (re-id) and 80 (retrieval).")


@dataclass
class SmoothAP(LossSchema):
    """Smooth-AP."""

    temperature: float = positive("The paper uses 0.01.")

    compares: ClassVar[str] = "groups"
    miners: ClassVar[tuple[str, ...]] = ()


@dataclass
class ProxyNCA(ParametricLoss):
    """Proxy-NCA and ProxyNCA++."""

    scale: float = positive("9 is both vectors times 3, as in public implementations.")
    positive_in_denominator: bool = MISSING


@dataclass
class ArcFace(ParametricLoss):
    """ArcFace."""

    margin: float = number(0, math.pi / 2, note="In radians; the paper uses 0.5 (28.6 degrees).")
    scale: float = positive("The paper uses 64 (faces).")

    hints: ClassVar[Mapping[str, str]] = {
        "margin_degrees": "margin is in radians: 28.6 degrees are margin=0.5"
    }


# ---------------------------------------------------------------- miners


@dataclass
class MinerSchema(Checked):
    """Base of all miners.

    kind: what the miner returns, "triplets" or "pairs"; None if it is no miner.
    """

    _target_: str = MISSING

    kind: ClassVar[str | None] = None


@dataclass
class NoMiner(MinerSchema):
    """All pairs or triplets of the batch."""


@dataclass
class SemihardMiner(MinerSchema):
    """Negatives farther than the positive, but within the margin."""

    margin: float = number(
        0, 4, open_low=True, open_high=True, note="FaceNet uses 0.2 with squared distances."
    )
    squared_distances: bool = MISSING

    kind: ClassVar[str | None] = "triplets"


@dataclass
class BatchHardMiner(MinerSchema):
    """Each anchor's farthest positive and nearest negative."""

    kind: ClassVar[str | None] = "triplets"


@dataclass
class DistanceWeightedMiner(MinerSchema):
    """Negatives drawn evenly over the distances."""

    cutoff: float = number(
        0, 2, open_low=True, open_high=True, note="The paper's implementation uses 0.5."
    )
    nonzero_loss_cutoff: float = number(
        0, 2, open_low=True, note="The paper's implementation uses 1.4."
    )

    kind: ClassVar[str | None] = "triplets"


@dataclass
class MultiSimilarityMiner(MinerSchema):
    """Pairs that the hardest pair of the other kind makes informative."""

    epsilon: float = number(0, note="The paper uses 0.1.")

    kind: ClassVar[str | None] = "pairs"


def register(store: Any) -> None:
    """Put every schema into hydra's ConfigStore, where the YAML finds it as /schema/loss/<name>."""
    loss, miner = "schema/loss", "schema/miner"
    store.store(group=loss, name="contrastive", node=Contrastive)
    store.store(group=loss, name="triplet", node=Triplet)
    store.store(group=loss, name="lifted_structure", node=LiftedStructure)
    store.store(group=loss, name="n_pair", node=NPair)
    store.store(group=loss, name="multi_similarity", node=MultiSimilarity)
    store.store(group=loss, name="circle", node=Circle)
    store.store(group=loss, name="smooth_ap", node=SmoothAP)
    store.store(group=loss, name="proxy_nca", node=ProxyNCA)
    store.store(group=loss, name="arcface", node=ArcFace)

    store.store(group=miner, name="none", node=NoMiner)
    store.store(group=miner, name="semihard", node=SemihardMiner)
    store.store(group=miner, name="batch_hard", node=BatchHardMiner)
    store.store(group=miner, name="distance_weighted", node=DistanceWeightedMiner)
    store.store(group=miner, name="multi_similarity", node=MultiSimilarityMiner)
