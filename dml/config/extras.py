"""What may be added to training: a memory, a regulariser, an average of the weights, a callback that
looks on. Their options.

The values live in the YAML, the meaning in the class that `_target_` names.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from dml.config.ranges import MISSING, Checked, count, number, positive
from dml.errors import Problem


@dataclass
class MemorySchema(Checked):
    """Base of all memories; itself: none. `size` is read by the rules between groups."""

    _target_: str | None = MISSING


@dataclass
class CrossBatchMemory(MemorySchema):
    """XBM: pairs between the batch and the embeddings of the last batches."""

    size: int = count(1)
    dim: int = count(1)
    start_step: int = count(0, note="The authors' configurations use 1000 and 2000.")
    weight: float = positive("The authors' code uses 1.")


@dataclass
class RegularizerSchema(Checked):
    """Base of all regularisers; itself: none.

    switches_triplets: it adds no term, but changes which triplets the miner returns.
    """

    _target_: str | None = MISSING

    switches_triplets: ClassVar[bool] = False


@dataclass
class L2(RegularizerSchema):
    """Short embeddings."""

    weight: float = positive("The SEC authors use 1e-4.")


@dataclass
class SphericalEmbeddingConstraint(RegularizerSchema):
    """Embeddings of one length."""

    weight: float = positive("The authors use 1 for triplets on CUB-200-2011.")
    momentum: float = number(
        0, 1, open_low=True, note="1 is the batch's own mean, the authors' default."
    )


@dataclass
class MultiLevelDistance(RegularizerSchema):
    """Distances at a few learned levels; they learn at the head's rate times lr_scale."""

    weight: float = positive("The authors use 0.6 (CUB), 0.2 (Cars) and 0.1 (SOP, In-Shop).")
    levels: list[float] = MISSING
    momentum: float = number(0, 1, open_high=True, note="The paper uses 0.9.")
    level_weight: float = number(0, note="The authors' code uses 0.01.")
    normalize: bool = MISSING
    lr_scale: float = positive()

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and at least one level."""
        found = super().problems(prefix)
        if isinstance(self.levels, list | tuple) and not self.levels:
            found.append(Problem(f"{prefix}.levels=[]", "must hold a level, such as [-3,0,3]."))
        return found


@dataclass
class Rho(RegularizerSchema):
    """Switched triplets."""

    p_switch: float = number(
        0, 1, open_low=True, note="Revisiting-DML uses 0.3 to 0.4 (CUB), 0.35 (Cars), 0.15 (SOP)."
    )

    switches_triplets: ClassVar[bool] = True


@dataclass
class AveragingSchema(Checked):
    """Base of all averages of weights; itself: none."""

    _target_: str | None = MISSING


@dataclass
class ExponentialAverage(AveragingSchema):
    """EMA: most of it the last 1 / (1 - decay) steps."""

    decay: float = number(0, 1, open_low=True, open_high=True)


@dataclass
class StochasticAverage(AveragingSchema):
    """SWA: the ends of the last epochs, alike."""

    start: float = number(0, 1, open_high=True, note="The paper averages over the last quarter.")


@dataclass
class CallbackSchema(Checked):
    """Base of what may look on at training; itself: none."""

    _target_: str | None = MISSING


@dataclass
class Forensics(CallbackSchema):
    """What the loss does to the embeddings."""

    every: int = count(1)
    patience: int = count(2)


def register(store: Any) -> None:
    """Tell Hydra the schemas, under ``schema/memory``, ``schema/regularizer``, ``schema/callbacks``."""
    store.store(group="schema/memory", name="none", node=MemorySchema)
    store.store(group="schema/memory", name="xbm", node=CrossBatchMemory)
    store.store(group="schema/averaging", name="none", node=AveragingSchema)
    store.store(group="schema/averaging", name="ema", node=ExponentialAverage)
    store.store(group="schema/averaging", name="swa", node=StochasticAverage)
    store.store(group="schema/callbacks", name="none", node=CallbackSchema)
    store.store(group="schema/callbacks", name="forensics", node=Forensics)
    regularizer = "schema/regularizer"
    store.store(group=regularizer, name="none", node=RegularizerSchema)
    store.store(group=regularizer, name="l2", node=L2)
    store.store(group=regularizer, name="sec", node=SphericalEmbeddingConstraint)
    store.store(group=regularizer, name="mdr", node=MultiLevelDistance)
    store.store(group=regularizer, name="rho", node=Rho)
