"""Types and ranges of the data sets and samplers.

A value lives in the YAML, beside its source; here are its type, its range and what it does.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from hydra.core.config_store import ConfigStore

from dml.config.ranges import MISSING, Checked, choice, count, number
from dml.errors import Problem


@dataclass
class DataSchema(Checked):
    """Base of all data sets."""

    _target_: str = MISSING
    name: str = MISSING  # as the record and messages call it
    root: str | None = MISSING
    num_train_classes: int | None = None  # counted when the data are read; losses refer to it
    on_bad_image: str = choice("error", "skip")  # an image that cannot be decoded
    recall_k: list[int] = field(default_factory=list)  # K of the Recall@K that are reported

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and K values that can be ranks."""
        found = super().problems(prefix)
        ks = list(self.recall_k)
        if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
            found.append(
                Problem(f"{prefix}.recall_k={ks}", "must list different whole numbers from 1 on.")
            )
        return found


@dataclass
class OwnData(DataSchema):
    """The user's own images: where the source names no splits, classes are dealt to them by seed."""

    seed: int = count(0)  # of the split; not the seed of training
    test_fraction: float = number(0, 1, open_low=True, open_high=True)  # of all classes
    val_fraction: float = number(
        0, 1, open_high=True, note="0 makes no validation split."
    )  # of the training classes


@dataclass
class CsvData(OwnData):
    """A labels file with columns path, label and, where wanted, class_name and split."""

    labels: str = MISSING


@dataclass
class SamplerSchema(Checked):
    """Base of all samplers. `promises_positives`: two images of a class in every batch for each image.

    `batch_size` is the sampler's own affair: there is no second option for it.
    """

    _target_: str = MISSING

    promises_positives: ClassVar[bool] = False


@dataclass
class PKSampler(SamplerSchema):
    """P classes x K images."""

    classes_per_batch: int = count(2, note="One class alone has no negatives.")
    images_per_class: int = count(2, note="One image alone has no positive.")
    batches_per_epoch: int | None = count(1)
    small_classes: str = choice("error", "skip", "repeat")

    promises_positives: ClassVar[bool] = True

    @property
    def images_per_batch(self) -> int:
        """Images in a batch."""
        return self.classes_per_batch * self.images_per_class


@dataclass
class RandomSampler(SamplerSchema):
    """Images in random order."""

    batch_size: int = count(2)

    @property
    def images_per_batch(self) -> int:
        """Images in a batch."""
        return self.batch_size


def register(store: ConfigStore) -> None:
    """Tell Hydra the schemas, under ``schema/data`` and ``schema/sampler``."""
    store.store(group="schema/data", name="glyphs", node=DataSchema)
    store.store(group="schema/data", name="digits", node=DataSchema)
    store.store(group="schema/data", name="folder", node=OwnData)
    store.store(group="schema/data", name="csv", node=CsvData)
    store.store(group="schema/sampler", name="pk", node=PKSampler)
    store.store(group="schema/sampler", name="random", node=RandomSampler)
