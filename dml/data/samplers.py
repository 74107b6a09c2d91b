"""Which images meet in a batch.

A sampler is a pure function of (seed, epoch): `batches(epoch)` may be called in any order, again, or on
another machine, and gives the same batches.  Several processes share one global batch: each takes its
own part, and the parts together are the batch that one process would have had.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from dml.data.dealing import ClassImages, check_world_size, dealt_classes, part_of
from dml.errors import ConfigurationError, Problem

WHOLE_CLASSES = ", which take whole classes"


class Sampler(Protocol):
    """What the loader needs. `batch_size` counts the images of a global batch, all processes together."""

    batch_size: int

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def batches(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Positions of the images, int64 [batch_size / world_size] per batch."""
        ...


class PK:
    """Batches of P classes x K images (In Defense of the Triplet Loss, arXiv:1703.07737, section 2).

    labels: int64 [n].  A batch lists its classes one after another, K images each.

    Classes are dealt like cards: no class twice in a batch, and all of them before any again, so that
    over an epoch each appears equally often, give or take one.  An epoch too short for that (see
    `batches_per_epoch`) deals on where the last one stopped.  Images of a class are dealt the same way
    within an epoch: no image twice in a batch, and all of a class's images before any again.

    batches_per_epoch: None gives max(ceil(C / P), n // (P K)): as many images as there are, and every
    class at least once.
    small_classes: what becomes of classes with fewer than K images. "error" names them; "skip" leaves
    them out (`skipped_classes`, `skipped_images` count them); "repeat" shows each of their images
    floor or ceil(K / size) times, which makes an image its own positive.

    Raises ConfigurationError if there are fewer than P classes, or small ones that are not allowed.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        classes_per_batch: int,
        images_per_class: int,
        seed: int,
        batches_per_epoch: int | None = None,
        small_classes: str = "error",
    ):
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.batch_size = classes_per_batch * images_per_class
        self.seed = seed
        self._images = ClassImages(labels, images_per_class, small_classes)
        self.num_classes = self._images.num_classes
        self.skipped_classes = self._images.skipped_classes
        self.skipped_images = self._images.skipped_images
        self._raise_if_impossible(small_classes)
        self._length = batches_per_epoch or max(
            math.ceil(self.num_classes / classes_per_batch),
            self._images.num_images // self.batch_size,
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._length

    def batches(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Positions int64 [P K / world_size] per batch; each process gets whole classes.

        Raises ConfigurationError if P classes cannot be shared by `world_size` processes.
        """
        p, k = self.classes_per_batch, self.images_per_class
        check_world_size("classes_per_batch", p, world_size, WHOLE_CLASSES)
        classes = dealt_classes((self.seed, 0), epoch, self.num_classes, self._length, p)
        rng = np.random.default_rng((self.seed, 1, epoch))
        positions = self._images.deal(rng, classes.reshape(-1), k)
        yield from part_of(positions.reshape(self._length, p * k), rank, world_size)

    def _raise_if_impossible(self, small_classes: str) -> None:
        p, k, left = self.classes_per_batch, self.images_per_class, self.num_classes
        problems = self._images.small_problems(k, small_classes)
        if left < p:
            skipped = (
                f" once {self.skipped_classes} small ones are skipped"
                if self.skipped_classes
                else ""
            )
            problems.append(
                Problem(
                    f"sampler.classes_per_batch={p}",
                    f"the training split has {left} classes{skipped}.\n"
                    + (
                        f"Choose at most sampler.classes_per_batch={left}; for batches of the same size "
                        f"add sampler.images_per_class={max(2, round(p * k / left))}."
                        if left >= 2
                        else "At least 2 are needed; add classes."
                    ),
                )
            )
        if problems:
            raise ConfigurationError(problems)


class WithReplacement:
    """Batches of P classes x K images, classes and images drawn with replacement.

    The sampler of Revisiting Deep Metric Learning (Roth et al., arXiv:2002.08473), as its code does it:
    P times a class drawn from all, and K times an image drawn from the class.  A class may come twice
    in a batch, and an image be its own positive; for comparisons with that paper alone.

    labels: int64 [n].  batches_per_epoch: None gives n // (P K), at least one.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        classes_per_batch: int,
        images_per_class: int,
        seed: int,
        batches_per_epoch: int | None = None,
    ):
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.batch_size = classes_per_batch * images_per_class
        self.seed = seed
        self._images = ClassImages(labels)
        self._length = batches_per_epoch or max(1, self._images.num_images // self.batch_size)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._length

    def batches(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Positions int64 [P K / world_size] per batch.

        Raises ConfigurationError if P draws cannot be shared by `world_size` processes.
        """
        p, k = self.classes_per_batch, self.images_per_class
        check_world_size("classes_per_batch", p, world_size, WHOLE_CLASSES)
        rng = np.random.default_rng((self.seed, 0, epoch))
        classes = rng.integers(self._images.num_classes, size=self._length * p)
        positions = self._images.draw(rng, classes, k)
        yield from part_of(positions.reshape(self._length, p * k), rank, world_size)


class ClassBalanced:
    """Batches in which every class comes equally often, however many images it has.

    The class-balanced sampling of Decoupling Representation and Classifier (Kang et al.,
    arXiv:1910.09217, section 3), for losses with proxies; promises no two images of a class in a batch.

    labels: int64 [n].  Classes are dealt like cards: all of them before any again, and none twice in a
    batch if there are `batch_size` of them.  Images of a class likewise within an epoch.
    batches_per_epoch: None gives n // batch_size, at least one.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        batches_per_epoch: int | None = None,
    ):
        self.batch_size = batch_size
        self.seed = seed
        self._images = ClassImages(labels)
        self._length = batches_per_epoch or max(1, self._images.num_images // batch_size)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._length

    def batches(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Positions int64 [batch_size / world_size] per batch.

        Raises ConfigurationError if a batch cannot be shared by `world_size` processes.
        """
        check_world_size("batch_size", self.batch_size, world_size)
        classes = dealt_classes(
            (self.seed, 0), epoch, self._images.num_classes, self._length, self.batch_size
        )
        rng = np.random.default_rng((self.seed, 1, epoch))
        positions = self._images.deal(rng, classes.reshape(-1), 1)
        yield from part_of(positions.reshape(classes.shape), rank, world_size)


class Random:
    """Shuffled batches: every image at most once in an epoch, the rest that fills no batch left out.

    labels: int64 [n]; only their number matters.  Promises no two images of a class in a batch: for
    losses with proxies.

    Raises ConfigurationError if there are fewer images than `batch_size`.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        batch_size: int,
        seed: int,
    ):
        self.batch_size = batch_size
        self.seed = seed
        self._images = len(labels)
        if self._images < batch_size:
            raise ConfigurationError(
                [
                    Problem(
                        f"sampler.batch_size={batch_size}",
                        f"the training split has {self._images} images.\n"
                        f"Choose at most sampler.batch_size={self._images}.",
                    )
                ]
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._images // self.batch_size

    def batches(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Positions int64 [batch_size / world_size] per batch.

        Raises ConfigurationError if a batch cannot be shared by `world_size` processes.
        """
        check_world_size("batch_size", self.batch_size, world_size)
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(self._images)
        whole = order[: len(self) * self.batch_size].astype(np.int64)
        yield from part_of(whole.reshape(len(self), self.batch_size), rank, world_size)
