"""What a data set holds, in numbers: its parts, and how large their classes are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dml.data.index import SPLITS, ImageIndex

BINS = 12  # most rows of a histogram


def parts_of(index: ImageIndex) -> dict[str, np.ndarray]:
    """Name -> int64 positions of its images, in the order train, val, test; empty splits are left out.

    A test split with queries and a gallery is shown as these two.
    """
    parts = {split: index.splits[split] for split in SPLITS if split in index.splits}
    if index.queries is not None and "test" in parts:
        test = parts.pop("test")
        parts["query"] = test[index.queries[test]]
        parts["gallery"] = test[~index.queries[test]]
    return {name: positions for name, positions in parts.items() if len(positions)}


def class_sizes(index: ImageIndex, positions: np.ndarray) -> np.ndarray:
    """Images of each class that occurs at `positions`, int64 [C], in the order of the labels."""
    return np.unique(index.labels[positions], return_counts=True)[1]


@dataclass(frozen=True)
class Histogram:
    """How many classes have how many images.

    intervals: of images per class, (least, most), as equal as whole numbers allow.
    counts: part -> classes in each interval.
    """

    intervals: list[tuple[int, int]]
    counts: Mapping[str, list[int]]

    @property
    def most(self) -> int:
        """The largest count."""
        return max(max(counts) for counts in self.counts.values())

    def labels(self) -> list[str]:
        """`7` or `7-9`, an interval each."""
        return [str(low) if low == high else f"{low}-{high}" for low, high in self.intervals]


def size_histogram(sizes: Mapping[str, np.ndarray]) -> Histogram:
    """The histogram of class sizes (part -> int64 [C]), with the same intervals for every part."""
    every = np.concatenate(list(sizes.values()))
    low, high = int(every.min()), int(every.max())
    width = -(-(high - low + 1) // BINS)
    starts = range(low, high + 1, width)
    intervals = [(start, min(start + width - 1, high)) for start in starts]
    edges = [*starts, high + 1]
    counts = {name: np.histogram(of, edges)[0].tolist() for name, of in sizes.items()}
    return Histogram(intervals, counts)
