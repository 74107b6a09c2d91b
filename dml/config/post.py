"""Post-processing steps: types and ranges of their options, and which steps may follow which.

The values live in the YAML, the meaning in the function that `_target_` names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dml.config.ranges import MISSING, Checked, count, number
from dml.errors import Problem

STAGES = ("images", "vectors", "ranking")


@dataclass
class PostSchema(Checked):
    """Base of all steps, and the step without options.

    stage: what it changes: the images before the encoder, the embeddings, or only the ranking.
    fitted: it needs embeddings of training images.  apart: it needs a gallery apart from the queries.
    """

    _target_: str = MISSING

    stage: ClassVar[str] = "vectors"
    fitted: ClassVar[bool] = False
    apart: ClassVar[bool] = False


@dataclass
class Flip(PostSchema):
    """Mirror images."""

    stage: ClassVar[str] = "images"


@dataclass
class MultiScale(PostSchema):
    """Several sizes."""

    scales: list[float] = MISSING

    stage: ClassVar[str] = "images"

    def problems(self, prefix: str) -> list[Problem]:
        """Sizes above 0 and of sense."""
        found = super().problems(prefix)
        if not self.scales or not all(0 < scale <= 4 for scale in self.scales):
            found.append(
                Problem(f"{prefix}.scales={list(self.scales)}", "must hold numbers in (0, 4].")
            )
        return found


@dataclass
class Truncate(PostSchema):
    """The first numbers."""

    dim: int = count(1)


@dataclass
class PCA(PostSchema):
    """Principal components."""

    dim: int | None = count(1)
    whiten: bool = MISSING

    fitted: ClassVar[bool] = True


@dataclass
class QueryExpansion(PostSchema):
    """Queries averaged with their nearest."""

    neighbours: int = count(1)
    alpha: float = number(0, note="The paper uses 3; 0 is the plain average.")


@dataclass
class DatabaseAugmentation(QueryExpansion):
    """Gallery items averaged with their nearest."""

    apart: ClassVar[bool] = True


@dataclass
class KReciprocal(PostSchema):
    """k-reciprocal re-ranking."""

    k1: int = count(1)
    k2: int = count(1)
    weight: float = number(0, 1)

    stage: ClassVar[str] = "ranking"


@dataclass
class Diffusion(PostSchema):
    """Diffusion."""

    neighbours: int = count(1)
    alpha: float = number(0, 1, open_low=True, open_high=True)
    gamma: float = number(0)

    stage: ClassVar[str] = "ranking"


def order_problems(steps: Mapping[str, type[PostSchema]]) -> list[Problem]:
    """Steps on images come first, then those on embeddings, and at most one re-ranking last."""
    found, names = [], list(steps)
    stages = [STAGES.index(step.stage) for step in steps.values()]
    where = f"post=[{','.join(names)}]"
    for before, name, left, right in zip(names, names[1:], stages, stages[1:], strict=False):
        if left > right:
            what = f"{name} changes {STAGES[right]} and cannot follow {before}. Swap them."
            found.append(Problem(where, what))
    if stages.count(STAGES.index("ranking")) > 1:
        found.append(Problem(where, "holds two re-rankings. Keep one."))
    return found


def register(store: Any) -> None:
    """Tell Hydra the schemas, under ``schema/post``."""
    schemas = {
        "flip": Flip,
        "multi_scale": MultiScale,
        "truncate": Truncate,
        "pca": PCA,
        "query_expansion": QueryExpansion,
        "database_augmentation": DatabaseAugmentation,
        "k_reciprocal": KReciprocal,
        "diffusion": Diffusion,
    }
    for name, node in schemas.items():
        store.store(group="schema/post", name=name, node=node)
