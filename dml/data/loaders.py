"""Batches in the order that a sampler decides, the same whatever the number of workers."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from torch.utils.data import DataLoader, Sampler

from dml.data.augment import Augmentation
from dml.data.decode import ImageFile, open_rgb
from dml.data.images import Images, collate
from dml.data.index import ImageSet
from dml.data.preprocess import Preprocess
from dml.processes import ignore_signals


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """A torch batch sampler over one of `dml.data.samplers`, with a place to resume at.

    Yields lists of (position, seed): the seed of each image's augmentation depends on
    (seed, epoch, batch, slot in the global batch) alone.  rank, world_size: whose part of each global
    batch this is.
    """

    def __init__(self, sampler, seed: int, rank: int = 0, world_size: int = 1):
        self.dealer = sampler
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.resume: tuple[int, int] | None = None

    @property
    def sampler(self) -> "EpochBatches":
        """Itself: Lightning calls `set_epoch` on the `sampler` of a batch sampler, not on that one."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def resume_at(self, step: int) -> None:
        """Start where `step` batches have already been used; later epochs are whole."""
        self.resume = divmod(step, len(self.dealer))

    def __len__(self) -> int:
        return len(self.dealer)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = self.resume or (self.epoch, 0)
        self.resume = None
        parts = self.dealer.batches(epoch, self.rank, self.world_size)
        for number, part in enumerate(islice(parts, start, None), start):
            stream = np.random.SeedSequence((self.seed, epoch, number))
            seeds = stream.generate_state(len(part) * self.world_size, np.uint64) >> np.uint64(1)
            first = self.rank * len(part)
            own = seeds[first : first + len(part)]
            yield list(zip(part.tolist(), own.tolist(), strict=True))


class TrainLoader(DataLoader):
    """A DataLoader that says it can be resumed; where it resumes is set by `EpochBatches.resume_at`."""

    def state_dict(self) -> dict:
        """Nothing: the position follows from the checkpoint's global step."""
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Nothing to restore; see `state_dict`."""


def train_loader(
    images: ImageSet,
    sampler,
    transform: Augmentation,
    seed: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> TrainLoader:
    """Batches of augmented training images; each file is decoded no further than its crop needs.

    Of several processes each gets its part of every batch.
    """
    return TrainLoader(
        Images(images, ImageFile, transform),
        batch_sampler=EpochBatches(sampler, seed, rank, world_size),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate,
        worker_init_fn=ignore_signals,
    )


def eval_loader(
    images: ImageSet,
    preprocess: Preprocess,
    batch_size: int,
    num_workers: int,
    persistent: bool = False,
    positions: np.ndarray | None = None,
) -> DataLoader:
    """Every image once, in order, decoded whole: the pixels are those of the published preprocessing.

    positions: those of some images alone, int64; one process's share.
    """
    return DataLoader(
        Images(images, open_rgb, preprocess.crop),
        batch_size=batch_size,
        sampler=None if positions is None else positions.tolist(),
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        collate_fn=collate,
        worker_init_fn=ignore_signals,
    )
