"""Types and ranges of the data sets and samplers.

A value lives in the YAML, beside its source; here are its type, its range and what it does.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from hydra.core.config_store import ConfigStore

from dml.config.ranges import MISSING, Checked, choice, count, number
from dml.data.dealing import SMALL_CLASSES
from dml.data.protocols import OWN_PROTOCOLS, PROTOCOLS, fold_problems
from dml.errors import Problem


@dataclass
class DataSchema(Checked):
    """Base of all data sets."""

    _target_: str = MISSING
    name: str = MISSING  # as the record and messages call it
    root: str | None = MISSING
    num_train_classes: int | None = None  # counted when the data are read; losses refer to it
    on_bad_image: str = choice("error", "skip")  # an image that cannot be decoded
    cache: str = choice("none", "resized")  # what training reads: files, or small copies of them
    cache_dir: str | None = MISSING  # where the copies are; null: the user's cache directory
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
class SplitData(DataSchema):
    """Sets whose training images a protocol divides (dml/data/protocols.py)."""

    protocol: str = choice(*PROTOCOLS)
    val_fraction: float = number(
        0, 1, open_high=True, note="0 makes no validation split."
    )  # of the training classes, for standard
    seed: int = count(0)  # of the split; not the seed of training
    fold: int | None = count(0)  # which part validates, for kfold
    folds: int = count(2)

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and a fold where there is one."""
        found = super().problems(prefix)
        if MISSING not in (self.protocol, self.fold, self.folds):
            found += fold_problems(self.protocol, self.fold, self.folds, prefix)
        return found


@dataclass
class OwnData(SplitData):
    """The user's own images: where the source names no splits, classes are dealt to them by seed."""

    protocol: str = choice(*OWN_PROTOCOLS)
    test_fraction: float = number(0, 1, open_low=True, open_high=True)  # of all classes


@dataclass
class CsvData(OwnData):
    """A labels file with columns path, label and, where wanted, class_name and split."""

    labels: str = MISSING


@dataclass
class SmallClassData(SplitData):
    """Sets of which many classes have few images. Samplers of K images a class refer to `small_classes`."""

    small_classes: str = choice(*SMALL_CLASSES)


@dataclass
class Sop(SmallClassData):
    """Stanford Online Products."""

    halves: bool = MISSING  # cut all classes in two equal halves


@dataclass
class InShop(SmallClassData):
    """In-Shop Clothes Retrieval."""

    highres: bool = MISSING  # the large images


@dataclass
class VehicleId(SmallClassData):
    """PKU VehicleID."""

    test_set: str = choice("small", "medium", "large")
    gallery: str = choice("one", "all")  # one image of each vehicle, or every image
    gallery_seed: int = count(0)  # of the images drawn, for one


@dataclass
class SamplerSchema(Checked):
    """Base of all samplers. `promises_positives`: two images of a class in every batch for each image.
    `takes_superclasses`: it is given the images' super-classes.

    `batch_size` is the sampler's own affair: there is no second option for it.
    """

    _target_: str = MISSING

    promises_positives: ClassVar[bool] = False
    takes_superclasses: ClassVar[bool] = False


@dataclass
class ClassesOfImages(SamplerSchema):
    """P classes x K images, however they are drawn."""

    classes_per_batch: int = count(2, note="One class alone has no negatives.")
    images_per_class: int = count(2, note="One image alone has no positive.")

    promises_positives: ClassVar[bool] = True

    @property
    def images_per_batch(self) -> int:
        """Images in a batch."""
        return self.classes_per_batch * self.images_per_class


@dataclass
class PKSampler(ClassesOfImages):
    """Classes and images dealt like cards."""

    batches_per_epoch: int | None = count(1)
    small_classes: str = choice(*SMALL_CLASSES)


@dataclass
class WithReplacementSampler(ClassesOfImages):
    """Classes and images drawn with replacement."""

    batches_per_epoch: int | None = count(1)


@dataclass
class HierarchicalSampler(ClassesOfImages):
    """Classes from few super-classes."""

    superclasses_per_batch: int = count(1)
    batches_per_combination: int = count(1, note="ROADMAP uses 10.")
    small_classes: str = choice(*SMALL_CLASSES)

    takes_superclasses: ClassVar[bool] = True


@dataclass
class RandomSampler(SamplerSchema):
    """Images in random order."""

    batch_size: int = count(2)

    @property
    def images_per_batch(self) -> int:
        """Images in a batch."""
        return self.batch_size


@dataclass
class ClassBalancedSampler(RandomSampler):
    """Every class equally often."""

    batches_per_epoch: int | None = count(1)


# Published sets without options of their own, beside the benchmarks.
FURTHER = ("inat2018", "flowers102", "ut_zappos50k", "cifar10", "cifar100", "mnist", "omniglot")


def register(store: ConfigStore) -> None:
    """Tell Hydra the schemas, under ``schema/data`` and ``schema/sampler``."""
    store.store(group="schema/data", name="glyphs", node=DataSchema)
    store.store(group="schema/data", name="digits", node=DataSchema)
    store.store(group="schema/data", name="folder", node=OwnData)
    store.store(group="schema/data", name="csv", node=CsvData)
    store.store(group="schema/data", name="cub200", node=SplitData)
    store.store(group="schema/data", name="cars196", node=SplitData)
    store.store(group="schema/data", name="sop", node=Sop)
    store.store(group="schema/data", name="inshop", node=InShop)
    store.store(group="schema/data", name="vehicleid", node=VehicleId)
    for name in FURTHER:
        store.store(group="schema/data", name=name, node=SplitData)
    store.store(group="schema/sampler", name="pk", node=PKSampler)
    store.store(group="schema/sampler", name="with_replacement", node=WithReplacementSampler)
    store.store(group="schema/sampler", name="hierarchical", node=HierarchicalSampler)
    store.store(group="schema/sampler", name="random", node=RandomSampler)
    store.store(group="schema/sampler", name="class_balanced", node=ClassBalancedSampler)
