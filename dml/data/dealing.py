"""Dealing classes and images to batches like cards: what the samplers have in common."""

import math
from collections.abc import Iterator

import numpy as np

from dml.data.index import shortened
from dml.errors import ConfigurationError, Problem

SMALL_CLASSES = ("error", "skip", "repeat")


def dealt(rng: np.random.Generator, rows: int, size: int, draws: int, take: int) -> np.ndarray:
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


def dealt_classes(
    key: tuple[int, ...], epoch: int, num_classes: int, count: int, take: int
) -> np.ndarray:
    """The classes of an epoch's `count` batches, int64 [count, take] in 0..num_classes-1.

    All classes before any again, so that each appears equally often over an epoch, give or take one;
    with take <= num_classes no class twice in a batch.  An epoch without room for all classes deals on
    where the last one stopped.  A function of (key, epoch).
    """
    cycle = math.ceil(num_classes / (count * take))  # epochs that are dealt as one
    rng = np.random.default_rng((*key, epoch // cycle))
    if take <= num_classes:
        classes = dealt(rng, 1, num_classes, cycle * count, take)
    else:
        classes = dealt(rng, 1, num_classes, 1, cycle * count * take)
    return classes.reshape(cycle * count, take)[(epoch % cycle) * count :][:count]


class ClassImages:
    """The images of each class, to be dealt K at a time.

    labels: int64 [n].  small_classes: what becomes of classes with fewer than `least` images; "error"
    and "repeat" keep them, "skip" leaves them out (`skipped_classes`, `skipped_images` count them).
    sizes: images of each class that is kept, int64 [num_classes].  labels: the label of each.
    """

    def __init__(self, labels: np.ndarray, least: int = 1, small_classes: str = "repeat"):
        if small_classes not in SMALL_CLASSES:
            raise ValueError(f"small_classes={small_classes!r} is none of {SMALL_CLASSES}")
        labels = np.asarray(labels, dtype=np.int64)
        names, sizes = np.unique(labels, return_counts=True)
        by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
        keep = np.ones(len(sizes), bool) if small_classes != "skip" else sizes >= least
        self.skipped_classes = int((~keep).sum())
        self.skipped_images = int(sizes[~keep].sum())
        self.labels, self.sizes = names[keep], sizes[keep]
        self.num_classes = len(self.sizes)
        self.num_images = int(self.sizes.sum())
        # Classes of equal size are dealt together: size -> which classes, and their images [m, size].
        kept = [members for members, kept in zip(by_class, keep, strict=True) if kept]
        self._row_of = np.empty(self.num_classes, dtype=np.int64)  # of a class, within its size
        self._members: dict[int, np.ndarray] = {}
        for size in np.unique(self.sizes):
            chosen = np.flatnonzero(self.sizes == size)
            self._row_of[chosen] = np.arange(len(chosen))
            self._members[int(size)] = np.stack([kept[c] for c in chosen])

    def deal(self, rng: np.random.Generator, classes: np.ndarray, k: int) -> np.ndarray:
        """K images for each entry of `classes` (int64 [m], positions in `labels`), int64 [m, k].

        All of a class's images before any again; none twice among the K, if the class has as many.
        """
        # The how-manieth time a class comes up.
        order = np.argsort(classes, kind="stable")
        counts = np.bincount(classes, minlength=self.num_classes)
        first = np.cumsum(counts) - counts
        turn = np.empty_like(classes)
        turn[order] = np.arange(len(classes)) - np.repeat(first, counts)
        chosen = np.empty((len(classes), k), dtype=np.int64)
        for size, members in self._members.items():
            here = np.flatnonzero(self.sizes[classes] == size)
            if len(here) == 0:
                continue
            draws = dealt(rng, len(members), size, int(turn[here].max()) + 1, k)
            rows = self._row_of[classes[here]]
            chosen[here] = members[rows[:, None], draws[rows, turn[here]]]
        return chosen

    def draw(self, rng: np.random.Generator, classes: np.ndarray, k: int) -> np.ndarray:
        """K images for each entry of `classes`, int64 [m, k], each drawn with replacement."""
        chosen = np.empty((len(classes), k), dtype=np.int64)
        for size, members in self._members.items():
            here = np.flatnonzero(self.sizes[classes] == size)
            rows = self._row_of[classes[here]]
            chosen[here] = members[rows[:, None], rng.integers(size, size=(len(here), k))]
        return chosen

    def small_problems(self, least: int, small_classes: str) -> list[Problem]:
        """The classes that "error" does not allow."""
        small = self.sizes < least
        if small_classes != "error" or not small.any():
            return []
        pairs = zip(self.labels[small], self.sizes[small], strict=True)
        listed = [f"{label} ({size})" for label, size in pairs]
        return [
            Problem(
                f"sampler.images_per_class={least}",
                f"{len(listed)} training classes have fewer images. Class (images): "
                f"{shortened(listed)}.\nChoose sampler.small_classes=skip or repeat, or a smaller "
                "number.",
            )
        ]


def part_of(batches: np.ndarray, rank: int, world_size: int) -> Iterator[np.ndarray]:
    """One process's part of each batch; together, in the order of ranks, they are the batch."""
    share = batches.shape[1] // world_size
    for batch in batches:
        yield batch[rank * share : (rank + 1) * share]


def check_world_size(option: str, value: int, world_size: int, why: str = "") -> None:
    """Raise ConfigurationError if `value` batch places cannot be shared by `world_size` processes."""
    if value % world_size:
        what = f"cannot be shared evenly by {world_size} processes{why}."
        mend = f"Choose a multiple of {world_size}."
        raise ConfigurationError([Problem(f"sampler.{option}={value}", f"{what}\n{mend}")])
