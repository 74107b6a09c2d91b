"""What a data set is to the rest of the code: files, labels, and the split each image belongs to.

Torch-free, so that a wrong folder or labels file is reported before anything slow is imported.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dml.errors import ConfigurationError, Problem

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageSet:
    """One split as the loaders see it.

    relative_paths: file names [n] below `root`.  labels: int64 [n], 0..C-1 within this split.
    class_names: C names, `class_names[label]`.  ids: int64 [n], positions in the whole index; they
    identify an image across splits, so that evaluation can exclude an image from its own results.
    superclasses: int64 [n], numbered as in the whole index, or None where the data has none.
    is_query: bool [n]; True is a query only, False is in the gallery only.  None: every image is both.
    """

    root: Path
    relative_paths: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: np.ndarray
    superclasses: np.ndarray | None = None
    is_query: np.ndarray | None = None

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
    empty or absent.  Test classes are unseen in training (the field's protocol), unless `closed_set`.
    superclasses: int64 [n], 0..S-1, or None.  queries: bool [n], read in the test split alone: True is a
    query only, False is in the gallery only.  None: every test image is both.
    """

    name: str
    root: Path
    paths: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: Mapping[str, np.ndarray] = field(default_factory=dict)
    superclasses: np.ndarray | None = None
    queries: np.ndarray | None = None
    closed_set: bool = False

    def __post_init__(self):
        for name in ("paths", "superclasses", "queries"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.labels):
                raise ValueError(f"{len(values)} {name} for {len(self.labels)} labels")
        if not self.closed_set and not self.class_disjoint:
            names = sorted(self.class_names[label] for label in self.seen_test_classes())
            raise ConfigurationError(
                [
                    Problem(
                        f"data={self.name}",
                        f"{len(names)} classes are in test and in train or val: {shortened(names)}.\n"
                        "Test classes must be unseen in training; give each class one split.",
                    )
                ]
            )

    def classes_of(self, split: str) -> np.ndarray:
        """Sorted labels that occur in `split`, int64."""
        return np.unique(self.labels[self.splits.get(split, np.empty(0, np.int64))])

    def seen_test_classes(self) -> np.ndarray:
        """Sorted labels of test classes that are in train or val as well, int64."""
        seen = np.union1d(self.classes_of("train"), self.classes_of("val"))
        return np.intersect1d(self.classes_of("test"), seen)

    @property
    def class_disjoint(self) -> bool:
        """Whether training and model selection see none of the test classes."""
        return len(self.seen_test_classes()) == 0

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
            superclasses=None if self.superclasses is None else self.superclasses[positions],
            is_query=None if self.queries is None or split != "test" else self.queries[positions],
        )

    def fingerprint(self, splits: Sequence[str] = SPLITS) -> str:
        """SHA-256 over file names, labels, splits and roles: what was loaded, not the pixels."""
        digest = hashlib.sha256()
        for split in splits:
            part = self.part(split)
            columns: list[Sequence[Any] | np.ndarray] = [
                part.relative_paths,
                [part.class_names[label] for label in part.labels],
            ]
            columns += [extra for extra in (part.superclasses, part.is_query) if extra is not None]
            for row in zip(*columns, strict=True):
                digest.update("\t".join([split, *map(str, row)]).encode() + b"\n")
        return digest.hexdigest()


def shortened(names: Sequence[Any], limit: int = 5) -> str:
    """`a, b, c and 7 more`: a list that fits one line of an error message."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
