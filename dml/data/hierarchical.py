"""Batches from few super-classes: hard negatives by the data's own hierarchy."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from dml.data.dealing import ClassImages, check_world_size, dealt_classes, part_of
from dml.data.index import shortened
from dml.data.samplers import WHOLE_CLASSES
from dml.errors import ConfigurationError, Problem


class Hierarchical:
    """Batches of P classes x K images, the classes from G super-classes in equal parts.

    FastAP (Cakir et al., CVPR 2019) takes two of the twelve categories of Stanford Online Products for
    each batch; ROADMAP (Ramzi et al., arXiv:2110.01445) does so with ten batches for each pair.

    labels: int64 [n].  superclasses: int64 [n], one value a class, or None where the data has none.
    A batch lists its super-classes one after another, P / G classes each, K images a class.

    An epoch takes every choice of G super-classes `batches_per_combination` times, in random order.
    Within a super-class the classes are dealt like cards: none twice in a batch, all before any again,
    and an epoch without room for all deals on where the last one stopped.  Images of a class likewise
    within an epoch.  small_classes: as in PK.

    Raises ConfigurationError: no super-classes, fewer than G, one with fewer than P / G classes, P no
    multiple of G, small classes that are not allowed.
    """

    def __init__(
        self,
        labels: np.ndarray,
        superclasses: np.ndarray | None,
        *,
        classes_per_batch: int,
        images_per_class: int,
        superclasses_per_batch: int,
        seed: int,
        batches_per_combination: int,
        small_classes: str = "error",
    ):
        if superclasses is None:
            raise ConfigurationError(
                [
                    Problem(
                        "sampler=hierarchical",
                        "takes classes from few super-classes, and this data names none.\n"
                        "Choose data with super-classes (data=sop), or sampler=pk.",
                    )
                ]
            )
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.superclasses_per_batch = superclasses_per_batch
        self.batch_size = classes_per_batch * images_per_class
        self.seed = seed
        self._images = ClassImages(labels, images_per_class, small_classes)
        self.skipped_classes = self._images.skipped_classes
        self.skipped_images = self._images.skipped_images
        # Of each super-class: its name, and its classes as positions in `_images.labels`.
        above = superclass_of(np.asarray(labels), np.asarray(superclasses), self._images.labels)
        self._names = np.unique(above)
        self._classes = [np.flatnonzero(above == name) for name in self._names]
        self._raise_if_impossible(small_classes)
        choices = itertools.combinations(range(len(self._names)), superclasses_per_batch)
        self._choices = np.repeat(np.array(list(choices)), batches_per_combination, axis=0)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._choices)

    def batches(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Positions int64 [P K / world_size] per batch; each process gets whole classes.

        Raises ConfigurationError if P classes cannot be shared by `world_size` processes.
        """
        p, k, g = self.classes_per_batch, self.images_per_class, self.superclasses_per_batch
        check_world_size("classes_per_batch", p, world_size, WHOLE_CLASSES)
        rng = np.random.default_rng((self.seed, 0, epoch))
        choices = rng.permutation(self._choices)  # [batches, G]
        classes = np.empty((len(choices), g, p // g), dtype=np.int64)
        for number, own in enumerate(self._classes):
            here = choices == number
            key = (self.seed, 2, number)
            hands = dealt_classes(key, epoch, len(own), int(here.sum()), p // g)
            classes[here] = own[hands]
        rng = np.random.default_rng((self.seed, 1, epoch))
        positions = self._images.deal(rng, classes.reshape(-1), k)
        yield from part_of(positions.reshape(len(choices), p * k), rank, world_size)

    def _raise_if_impossible(self, small_classes: str) -> None:
        p, g, found = self.classes_per_batch, self.superclasses_per_batch, len(self._names)
        problems = self._images.small_problems(self.images_per_class, small_classes)
        if found < g:
            what = f"the training split has {found} super-classes.\nChoose at most {found}."
            problems.append(Problem(f"sampler.superclasses_per_batch={g}", what))
        sizes = [len(own) for own in self._classes]
        few = [(n, s) for n, s in zip(self._names, sizes, strict=True) if s < p / g]
        if p % g:
            what = f"is no multiple of sampler.superclasses_per_batch={g}.\nChoose {g * math.ceil(p / g)}."
            problems.append(Problem(f"sampler.classes_per_batch={p}", what))
        elif few:
            listed = shortened([f"{name} ({size})" for name, size in few])
            what = (
                f"takes {p // g} classes from each of {g} super-classes, and {len(few)} super-classes "
                f"have fewer. Super-class (classes): {listed}.\n"
                f"Choose at most sampler.classes_per_batch={g * min(sizes)}, or sampler=pk."
            )
            problems.append(Problem(f"sampler.classes_per_batch={p}", what))
        if problems:
            raise ConfigurationError(problems)


def superclass_of(labels: np.ndarray, superclasses: np.ndarray, names: np.ndarray) -> np.ndarray:
    """The super-class of each class in `names`, int64 [len(names)].

    Raises ConfigurationError if a class's images are in several.
    """
    pairs = np.unique(np.stack([labels, superclasses]), axis=1)
    classes, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        what = (
            f"{int((counts > 1).sum())} training classes are in several super-classes: "
            f"{shortened(classes[counts > 1].tolist())}.\n"
            "Give each class one super-class, or choose sampler=pk."
        )
        raise ConfigurationError([Problem("sampler=hierarchical", what)])
    return pairs[1][np.searchsorted(classes, names)]
