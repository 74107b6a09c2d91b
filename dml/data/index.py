"""What a data set is to the rest of the code: files, labels, and the split each image belongs to.

Torch-free, so that a wrong folder or labels file is reported before anything slow is imported.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dml.errors import ConfigurationError, Problem

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageSet:
    """One split as the loaders see it.

    paths: absolute file names [n].  labels: int64 [n], 0..C-1 within this split.
    class_names: C names, `class_names[label]`.  ids: int64 [n], positions in the whole index; they
    identify an image across splits, so that evaluation can exclude an image from its own results.
    """

    root: Path
    relative_paths: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, position: int) -> Path:
        """File of the image at `position`."""
        return self.root / str(self.relative_paths[position])

    @property
    def num_classes(self) -> int:
        """Number of classes in this split."""
        return len(self.class_names)

    def class_sizes(self) -> np.ndarray:
        """Images per class, int64 [C]."""
        return np.bincount(self.labels, minlength=self.num_classes)


@dataclass(frozen=True)
class ImageIndex:
    """All images of a data set.

    paths: [n] file names relative to `root`, posix form.  labels: int64 [n], positions in
    `class_names`.  splits: name -> int64 positions; names are "train", "val", "test".  A split may be
    empty or absent.  `class_disjoint` says whether test classes are unseen in training (the field's
    protocol) or the user's own labels file shares them.
    """

    name: str
    root: Path
    paths: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.paths) != len(self.labels):
            raise ValueError(f"{len(self.paths)} paths for {len(self.labels)} labels")
        overlap = set(self.classes_of("train")) & set(self.classes_of("test"))
        if overlap:
            names = sorted(self.class_names[label] for label in overlap)
            raise ConfigurationError(
                [
                    Problem(
                        f"data={self.name}",
                        f"{len(names)} classes are in both train and test: {shortened(names)}.\n"
                        "Test classes must be unseen in training; give each class one split.",
                    )
                ]
            )

    def classes_of(self, split: str) -> np.ndarray:
        """Sorted labels that occur in `split`, int64."""
        return np.unique(self.labels[self.splits.get(split, np.empty(0, np.int64))])

    def part(self, split: str) -> ImageSet:
        """The images of one split, with labels renumbered 0..C-1 in the order of `class_names`."""
        positions = np.asarray(self.splits.get(split, np.empty(0, np.int64)), dtype=np.int64)
        classes, labels = np.unique(self.labels[positions], return_inverse=True)
        return ImageSet(
            root=self.root,
            relative_paths=self.paths[positions],
            labels=labels.astype(np.int64),
            class_names=tuple(self.class_names[label] for label in classes),
            ids=positions,
        )

    def fingerprint(self) -> str:
        """SHA-256 over file names, class names and splits: what was loaded, not the pixels."""
        digest = hashlib.sha256()
        for split in SPLITS:
            positions = self.splits.get(split, np.empty(0, np.int64))
            for position in positions:
                name = self.class_names[self.labels[position]]
                digest.update(f"{split}\t{self.paths[position]}\t{name}\n".encode())
        return digest.hexdigest()


def class_disjoint_split(
    labels: np.ndarray, fractions: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Deal whole classes to splits: shuffled by `seed`, then cut by `fractions`.

    labels: int64 [n].  fractions: split name -> share of the classes, summing to 1.  Returns split ->
    sorted int64 positions.  Every split with a fraction above 0 gets at least one class while there
    are classes enough.
    """
    classes = np.unique(labels)
    order = np.random.default_rng(seed).permutation(len(classes))
    wanted = {name: share for name, share in fractions.items() if share > 0}
    bounds = np.round(np.cumsum(list(wanted.values())) * len(classes)).astype(int)
    for i in range(len(bounds)):  # no wanted split is left empty
        bounds[i] = max(bounds[i], i + 1)
        bounds[i] = min(bounds[i], len(classes) - (len(bounds) - 1 - i))
    splits: dict[str, np.ndarray] = {}
    start = 0
    for name, stop in zip(wanted, bounds, strict=True):
        chosen = classes[order[start : max(stop, start)]]
        splits[name] = np.flatnonzero(np.isin(labels, chosen)).astype(np.int64)
        start = max(stop, start)
    return splits


def shortened(names: list[str], limit: int = 5) -> str:
    """`a, b, c and 7 more`: a list that fits one line of an error message."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
