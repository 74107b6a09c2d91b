"""Which images meet in a batch.

A sampler is a pure function of (seed, epoch): `batches(epoch)` may be called in any order, again, or on
another machine, and gives the same batches.  Several processes share one global batch: each takes its
own part, and the parts together are the batch that one process would have had.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from dml.data.index import shortened
from dml.errors import ConfigurationError, Problem


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
        if small_classes not in ("error", "skip", "repeat"):
            raise ValueError(f"small_classes={small_classes!r} is none of error, skip, repeat")
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.batch_size = classes_per_batch * images_per_class
        self.seed = seed
        labels = np.asarray(labels, dtype=np.int64)
        names, sizes = np.unique(labels, return_counts=True)
        by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
        small = sizes < images_per_class
        keep = ~small if small_classes == "skip" else np.ones(len(sizes), bool)
        self.skipped_classes = int((~keep).sum())
        self.skipped_images = int(sizes[~keep].sum())
        self._raise_if_impossible(names, sizes, small, small_classes)
        self.num_classes = int(keep.sum())
        self._length = batches_per_epoch or max(
            math.ceil(self.num_classes / classes_per_batch),
            int(sizes[keep].sum()) // self.batch_size,
        )
        # Classes of equal size are dealt together: size -> which classes, and their images [m, size].
        self._size_of = sizes[keep]
        kept = [members for members, kept in zip(by_class, keep, strict=True) if kept]
        self._row_of = np.empty(self.num_classes, dtype=np.int64)  # of a class, within its size
        self._members: dict[int, np.ndarray] = {}
        for size in np.unique(self._size_of):
            chosen = np.flatnonzero(self._size_of == size)
            self._row_of[chosen] = np.arange(len(chosen))
            self._members[int(size)] = np.stack([kept[c] for c in chosen])

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._length

    def batches(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Positions int64 [P K / world_size] per batch; each process gets whole classes.

        Raises ConfigurationError if P classes cannot be shared by `world_size` processes.
        """
        if self.classes_per_batch % world_size:
            raise ConfigurationError(
                [
                    Problem(
                        f"sampler.classes_per_batch={self.classes_per_batch}",
                        f"cannot be shared evenly by {world_size} processes, which take whole classes.\n"
                        f"Choose a multiple of {world_size}.",
                    )
                ]
            )
        positions = self._epoch(epoch)
        share = self.batch_size // world_size
        for batch in positions:
            yield batch[rank * share : (rank + 1) * share]

    def _epoch(self, epoch: int) -> np.ndarray:
        """All batches, int64 [batches, P K]."""
        p, k, count = self.classes_per_batch, self.images_per_class, self._length
        # Epochs in which not all classes have room form a cycle, dealt as one.
        cycle = math.ceil(self.num_classes / (count * p))
        rng = np.random.default_rng((self.seed, 0, epoch // cycle))
        classes = _dealt(rng, 1, self.num_classes, cycle * count, p)[0]
        classes = classes[(epoch % cycle) * count :][:count].reshape(-1)
        # The how-manieth time a class comes up in this epoch.
        order = np.argsort(classes, kind="stable")
        counts = np.bincount(classes, minlength=self.num_classes)
        first = np.cumsum(counts) - counts
        turn = np.empty_like(classes)
        turn[order] = np.arange(len(classes)) - np.repeat(first, counts)
        rng = np.random.default_rng((self.seed, 1, epoch))
        chosen = np.empty((len(classes), k), dtype=np.int64)
        for size, members in self._members.items():
            here = np.flatnonzero(self._size_of[classes] == size)
            if len(here) == 0:
                continue
            draws = _dealt(rng, len(members), size, int(turn[here].max()) + 1, k)
            rows = self._row_of[classes[here]]
            chosen[here] = members[rows[:, None], draws[rows, turn[here]]]
        return chosen.reshape(count, p * k)

    def _raise_if_impossible(
        self, names: np.ndarray, sizes: np.ndarray, small: np.ndarray, small_classes: str
    ) -> None:
        p, k = self.classes_per_batch, self.images_per_class
        problems = []
        if small.any() and small_classes == "error":
            listed = [f"{c} ({s})" for c, s in zip(names[small], sizes[small], strict=True)]
            problems.append(
                Problem(
                    f"sampler.images_per_class={k}",
                    f"{len(listed)} training classes have fewer images. Class (images): "
                    f"{shortened(listed)}.\nChoose sampler.small_classes=skip or repeat, or a smaller "
                    "number.",
                )
            )
        left = len(names) - (int(small.sum()) if small_classes == "skip" else 0)
        if left < p:
            skipped = (
                f" once {len(names) - left} small ones are skipped" if left < len(names) else ""
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
        if self.batch_size % world_size:
            raise ConfigurationError(
                [
                    Problem(
                        f"sampler.batch_size={self.batch_size}",
                        f"cannot be shared evenly by {world_size} processes.\n"
                        f"Choose a multiple of {world_size}.",
                    )
                ]
            )
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(self._images)
        share = self.batch_size // world_size
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start + rank * share : start + (rank + 1) * share].astype(np.int64)


def _dealt(rng: np.random.Generator, rows: int, size: int, draws: int, take: int) -> np.ndarray:
    """Deal `draws` hands of `take` cards from packs of `size` cards, in `rows` games at once.

    Returns int64 [rows, draws, take] in 0..size-1.  With take <= size no hand holds a card twice and no
    card comes again before the whole pack was dealt.  Otherwise each hand holds every card floor or
    ceil(take / size) times.
    """
    if take > size:  # each hand from packs of its own
        packs = math.ceil(take / size)
        order = rng.random((rows, draws, packs, size)).argsort(axis=-1)
        return order.reshape(rows, draws, packs * size)[:, :, :take]
    stream = np.empty((rows, draws * take), dtype=np.int64)
    for start in range(0, draws * take, size):
        keys = rng.random((rows, size))
        begun = start % take  # cards that the unfinished hand has from the pack before
        if begun:
            # The hand is filled up with cards it does not have; the others follow in any order.
            hand = stream[:, start - begun : start]
            barred = keys.copy()
            np.put_along_axis(barred, hand, 2.0, axis=1)
            fill = barred.argsort(axis=1)[:, : take - begun]
            keys = rng.random((rows, size))
            np.put_along_axis(keys, fill, np.arange(fill.shape[1]) - float(take), axis=1)
        room = stream[:, start : start + size]
        room[:] = keys.argsort(axis=1)[:, : room.shape[1]]
    return stream.reshape(rows, draws, take)
