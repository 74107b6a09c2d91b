"""What a loss or miner may be given: types and ranges of its options, and what it demands.

One dataclass per file of configs/loss and configs/miner. Torch-free: read before anything slow is
imported. The values live in the YAML, the meaning in the class that `_target_` names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dml.config.ranges import MISSING, Checked, choice, count, number, positive
from dml.errors import Problem


@dataclass
class LossSchema(Checked):
    """Base of all losses. The class variables are what `check.py`, the module and the evaluator
    read.

    geometry: "cosine" (the encoder ends in L2 normalisation), "dot" or "euclidean" (it does not).
    compares: "pairs", "triplets", "groups" (each needs two images of a class in a batch) or
    "proxies".
    keeps_length: True where training needs embeddings at their own length although they are compared
    by cosine: the encoder then does not normalise.
    miners: kinds of miner tuples the loss takes; () none.
    takes_reference: it can compare the batch with a memory.
    mean_over_images: it is a mean of one value per image, to which no other image of the batch
    contributes, plus what the parameters alone decide. Several processes then need not gather.
    verified: equal to its paper by a test of ours.
    hints: option names of other libraries -> what to write here.
    """

    _target_: str = MISSING

    geometry: ClassVar[str] = "cosine"
    keeps_length: ClassVar[bool] = False
    compares: ClassVar[str] = "pairs"
    miners: ClassVar[tuple[str, ...]] = ("pairs", "triplets")
    takes_reference: ClassVar[bool] = True
    mean_over_images: ClassVar[bool] = False
    verified: ClassVar[bool] = True
    hints: ClassVar[Mapping[str, str]] = {}


@dataclass
class LearnedLoss(LossSchema):
    """A loss with parameters of its own.

    lr_scale: their learning rate is the head's times this.  weight_decay: theirs alone.
    """

    lr_scale: float = positive()
    weight_decay: float = number(0)


@dataclass
class ProxyLoss(LearnedLoss):
    """One that compares samples with what it keeps of each class."""

    compares: ClassVar[str] = "proxies"
    miners: ClassVar[tuple[str, ...]] = ()
    takes_reference: ClassVar[bool] = False


@dataclass
class ParametricLoss(ProxyLoss):
    """One with proxies, class centres or a classifier's weights of its own."""

    num_classes: int = count(2)
    embedding_dim: int = count(1)

    mean_over_images: ClassVar[bool] = True


@dataclass
class RankingLoss(LossSchema):
    """One that ranks the whole batch for each image, and takes no miner."""

    compares: ClassVar[str] = "groups"
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
    margin: float = positive("Public implementations use 1 for both forms.")

    geometry: ClassVar[str] = "euclidean"


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
class SmoothAP(RankingLoss):
    """Smooth-AP."""

    temperature: float = positive("The paper uses 0.01.")


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


# ---------------------------------------------------------------- proxies and classification, more


@dataclass
class ProxyAnchor(ParametricLoss):
    """Proxy-Anchor."""

    margin: float = number(0, 1, open_high=True, note="The paper uses 0.1.")
    scale: float = positive("The paper uses 32.")

    mean_over_images: ClassVar[bool] = False  # a proxy weighs the images of a batch together


@dataclass
class SoftTriple(ParametricLoss):
    """SoftTriple."""

    centers: int = count(1, note="The authors' code uses 10 on Cars196.")
    scale: float = positive("The paper's lambda; its code uses 20.")
    gamma: float = positive("The authors' code uses 0.1.")
    margin: float = number(0, 1, open_high=True, note="The authors' code uses 0.01.")
    merge_weight: float = number(0, note="The paper's tau; its code uses 0.2.")


@dataclass
class NormSoftmax(ParametricLoss):
    """Normalised softmax."""

    temperature: float = positive("The authors' code uses 0.05.")


@dataclass
class CosFace(ParametricLoss):
    """CosFace, alias AM-Softmax."""

    margin: float = number(0, 1, open_high=True, note="The paper uses 0.35 (faces).")
    scale: float = positive("The paper uses 64 (faces), AM-Softmax 30.")


@dataclass
class SubCenterArcFace(ArcFace):
    """Sub-center ArcFace."""

    centers: int = count(1, note="The paper uses 3.")


@dataclass
class CircleSoftmax(ParametricLoss):
    """Circle loss between samples and class centres."""

    margin: float = number(
        0, 1, open_low=True, open_high=True, note="The paper uses 0.25 (faces and re-id)."
    )
    scale: float = positive("The paper uses 256 (faces) and 128 (re-id).")


@dataclass
class SphereFace(ParametricLoss):
    """SphereFace, alias A-Softmax."""

    margin: int = count(1, note="The paper uses 4.")
    blend: float = number(0, note="Lambda; the authors anneal it from 1000 to 5.")

    keeps_length: ClassVar[bool] = True


@dataclass
class CrossEntropy(ParametricLoss):
    """Softmax cross-entropy of a linear classifier."""

    label_smoothing: float = number(0, 1, open_high=True, note="The paper's code uses 0.1.")
    with_bias: bool = MISSING

    keeps_length: ClassVar[bool] = True


@dataclass
class Center(ParametricLoss):
    """Softmax cross-entropy with center loss."""

    center_weight: float = number(0, note="Lambda; the paper uses 0.003 (faces).")

    keeps_length: ClassVar[bool] = True


@dataclass
class Island(Center):
    """Softmax cross-entropy with island loss."""

    pair_weight: float = number(0, note="Lambda_1, on the mean over pairs of centres.")


@dataclass
class Focal(ProxyLoss):
    """Focal loss over the logits of another classification loss."""

    classifier: dict[str, Any] = MISSING
    gamma: float = number(0, note="The paper uses 2.")

    mean_over_images: ClassVar[bool] = True


# ---------------------------------------------------------------- pairs, triplets and ranks, more


@dataclass
class Margin(LearnedLoss):
    """Margin loss with a learned boundary; beta is learned at the head's rate times lr_scale."""

    num_classes: int = count(2)
    margin: float = number(0, 2, open_low=True, note="The paper uses 0.2.")
    initial_beta: float = number(
        0, 2, open_low=True, open_high=True, note="Revisiting-DML starts from 1.2."
    )
    nu: float = number(0, note="Public implementations use 0.")
    per_class: bool = MISSING

    compares: ClassVar[str] = "triplets"


@dataclass
class SupCon(LossSchema):
    """Supervised contrastive loss."""

    temperature: float = positive("The paper uses 0.1, its code 0.07.")


@dataclass
class NTXent(LossSchema):
    """NT-Xent, the loss of SimCLR."""

    temperature: float = positive("The paper uses 0.1 on ImageNet.")


@dataclass
class Angular(LossSchema):
    """Angular loss."""

    degrees: float = number(
        0, 90, open_low=True, open_high=True, note="Public implementations use 40 and 45."
    )


@dataclass
class TupletMargin(LossSchema):
    """Tuplet margin loss."""

    margin: float = number(0, math.pi / 2, note="In radians; 5.73 degrees are 0.1.")
    scale: float = positive("64 in pytorch-metric-learning.")

    hints: ClassVar[Mapping[str, str]] = {
        "margin_degrees": "margin is in radians: 5.73 degrees are margin=0.1"
    }


@dataclass
class SNRContrastive(LossSchema):
    """Contrastive loss on the signal-to-noise distance."""

    positive_margin: float = number(0, note="0 in pytorch-metric-learning.")
    negative_margin: float = positive("1 in pytorch-metric-learning; independent vectors have 2.")
    mean_weight: float = number(0, note="Revisiting-DML uses 0.005.")

    geometry: ClassVar[str] = "euclidean"


@dataclass
class RankedList(LossSchema):
    """Ranked list loss."""

    boundary: float = number(0, 2, open_low=True, note="The authors use 1.2, and 1.4 on CUB.")
    margin: float = number(0, 2, open_low=True, note="The authors use 0.4, and 0.2 on CUB.")
    positive_temperature: float = number(0, note="The authors' files use 0.")
    negative_temperature: float = number(0, note="The authors' files use 10.")
    negative_weight: float = number(0, 1, note="0.5 weighs both sides alike.")


@dataclass
class Quadruplet(LossSchema):
    """Quadruplet loss."""

    margin: float = number(0, 4, open_low=True, open_high=True, note="Revisiting-DML uses 0.2.")
    pair_margin: float = number(
        0, 4, open_low=True, open_high=True, note="The paper wants it below margin."
    )
    average: str = choice("active", "all")

    compares: ClassVar[str] = "triplets"


@dataclass
class Roadmap(RankingLoss):
    """ROADMAP: SupAP and calibration."""

    temperature: float = positive("The authors' code uses 0.01.")
    slope: float = number(0, note="The authors' code uses 100.")
    knee: float = number(0, 2, note="The authors' code uses 0.05.")
    positive_margin: float = number(-1, 1, note="It is a cosine; the authors' code uses 0.9.")
    negative_margin: float = number(-1, 1, note="It is a cosine; the authors' code uses 0.6.")
    calibration: float = number(0, 1, note="The authors' code weighs both terms alike: 0.5.")


@dataclass
class RecallAtK(RankingLoss):
    """Recall@k surrogate."""

    k: list[int] = MISSING
    k_temperature: float = positive()
    rank_temperature: float = positive("The authors' code uses 0.01.")

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and that k holds ranks."""
        found = super().problems(prefix)
        if isinstance(self.k, list | tuple) and (not self.k or min(self.k) < 1):
            found.append(
                Problem(
                    f"{prefix}.k={list(self.k)}",
                    "must be whole numbers of at least 1, such as [1,2,4,8,16].",
                )
            )
        return found


@dataclass
class FastAP(RankingLoss):
    """FastAP."""

    bins: int = count(1, note="The authors' code uses 10.")


# ---------------------------------------------------------------- several losses, foreign losses


@dataclass
class Sum(LossSchema):
    """Two or three losses at once; what the sum demands, its parts demand.

    Each part is a node of its own, checked by the schema of the loss it holds.
    """

    first: Any = MISSING
    second: Any = MISSING
    third: Any = None
    weights: list[float] = MISSING

    parts: ClassVar[tuple[str, ...]] = ("first", "second", "third")

    def problems(self, prefix: str) -> list[Problem]:
        """One weight above 0 for each part."""
        found = super().problems(prefix)
        number = sum(getattr(self, part) is not None for part in self.parts)
        weights = self.weights
        if isinstance(weights, list | tuple) and (
            len(weights) != number or not all(0 < weight < math.inf for weight in weights)
        ):
            example = ",".join(["1"] * number)
            found.append(
                Problem(
                    f"{prefix}.weights={list(weights)}",
                    f"must be {number} numbers above 0, one for each loss, such as [{example}].",
                )
            )
        return found


@dataclass
class PmlLoss(LossSchema):
    """A loss of pytorch-metric-learning over pairs or triplets."""

    loss: str = MISSING
    arguments: dict[str, Any] = MISSING
    distance: dict[str, Any] | None = MISSING
    reducer: dict[str, Any] = MISSING
    state: list[str] = MISSING

    verified: ClassVar[bool] = False
    takes_reference: ClassVar[bool] = False


@dataclass
class PmlGroupLoss(PmlLoss, RankingLoss):
    """One that looks at the whole batch and takes no miner."""


@dataclass
class PmlClassificationLoss(PmlLoss, ProxyLoss):
    """One with parameters per class."""

    keeps_length: ClassVar[bool] = True


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


# What a YAML's defaults list names: /schema/loss/<name>@_here_ and /schema/miner/<name>@_here_.
LOSSES: dict[str, type[LossSchema]] = {
    "contrastive": Contrastive,
    "triplet": Triplet,
    "lifted_structure": LiftedStructure,
    "n_pair": NPair,
    "multi_similarity": MultiSimilarity,
    "circle": Circle,
    "smooth_ap": SmoothAP,
    "proxy_nca": ProxyNCA,
    "arcface": ArcFace,
    "proxy_anchor": ProxyAnchor,
    "soft_triple": SoftTriple,
    "norm_softmax": NormSoftmax,
    "cosface": CosFace,
    "sub_center_arcface": SubCenterArcFace,
    "circle_softmax": CircleSoftmax,
    "sphereface": SphereFace,
    "cross_entropy": CrossEntropy,
    "center": Center,
    "island": Island,
    "focal": Focal,
    "margin": Margin,
    "sup_con": SupCon,
    "nt_xent": NTXent,
    "angular": Angular,
    "tuplet_margin": TupletMargin,
    "snr_contrastive": SNRContrastive,
    "ranked_list": RankedList,
    "quadruplet": Quadruplet,
    "roadmap": Roadmap,
    "recall_at_k": RecallAtK,
    "fast_ap": FastAP,
    "sum": Sum,
    "pml": PmlLoss,
    "pml_group": PmlGroupLoss,
    "pml_classification": PmlClassificationLoss,
}
MINERS: dict[str, type[MinerSchema]] = {
    "none": NoMiner,
    "semihard": SemihardMiner,
    "batch_hard": BatchHardMiner,
    "distance_weighted": DistanceWeightedMiner,
    "multi_similarity": MultiSimilarityMiner,
}


def register(store: Any) -> None:
    """Tell Hydra the schemas, under ``schema/loss`` and ``schema/miner``."""
    for group, schemas in (("loss", LOSSES), ("miner", MINERS)):
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
