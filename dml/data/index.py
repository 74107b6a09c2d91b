"""What a data set is to the rest of the code: files, labels, and the split each image belongs to.

Torch-free, so that a wrong folder or labels file is reported before anything slow is imported.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

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
    empty or absent.  Test classes are unseen in training (the field's protocol).
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
    labels: np.ndarray, fractions: Mapping[str, float], seed: int, least: int = 2
) -> dict[str, np.ndarray]:
    """Deal whole classes to splits: shuffled by `seed`, then cut by `fractions`.

    labels: int64 [n].  fractions: split name -> share of the classes, summing to 1.  Returns split ->
    sorted int64 positions.  Every split with a fraction above 0 gets at least `least` classes while
    there are classes enough.  The order comes from Python's `random()`, whose values for an integer seed
    are the same in every version: a split never changes.
    """
    classes = np.unique(labels)
    rng = Random(seed)
    order = np.argsort([rng.random() for _ in classes], kind="stable")
    wanted = {name: share for name, share in fractions.items() if share > 0}
    least = min(least, len(classes) // max(len(wanted), 1))
    bounds = np.floor(np.cumsum(list(wanted.values())) * len(classes) + 0.5).astype(int)
    for i in range(len(bounds)):  # no wanted split is left short
        bounds[i] = max(bounds[i], (bounds[i - 1] if i else 0) + least)
        bounds[i] = min(bounds[i], len(classes) - (len(bounds) - 1 - i) * least)
    splits: dict[str, np.ndarray] = {}
    start = 0
    for name, stop in zip(wanted, bounds, strict=True):
        chosen = classes[order[start : max(stop, start)]]
        splits[name] = np.flatnonzero(np.isin(labels, chosen)).astype(np.int64)
        start = max(stop, start)
    return splits


def completed_splits(
    given: Mapping[str, np.ndarray] | None,
    labels: np.ndarray,
    *,
    seed: int,
    test_fraction: float,
    val_fraction: float,
) -> dict[str, np.ndarray]:
    """A source's own splits, and what it lacks of them.

    given: split -> positions, or None where the source names none: then `test_fraction` of the classes
    become test and the others train.  Without "val", `val_fraction` of the training classes are taken
    out of train for it (0: none).
    """
    if given is None:
        splits = class_disjoint_split(
            labels, {"train": 1 - test_fraction, "test": test_fraction}, seed
        )
    else:
        splits = dict(given)
    train = splits.get("train", np.empty(0, np.int64))
    if "val" not in splits and val_fraction > 0 and len(train):
        shares = {"train": 1 - val_fraction, "val": val_fraction}
        parts = class_disjoint_split(labels[train], shares, seed)
        splits |= {split: train[positions] for split, positions in parts.items()}
    return splits


def fraction_problems(test_fraction: float, val_fraction: float) -> list[Problem]:
    """Fractions that are out of range. The schema checks them too; `load` may be called without it."""
    problems = []
    if not 0 < test_fraction < 1:
        problems.append(Problem(f"data.test_fraction={test_fraction:g}", "must lie in (0, 1)."))
    if not 0 <= val_fraction < 1:
        what = "must lie in [0, 1). 0 makes no validation split."
        problems.append(Problem(f"data.val_fraction={val_fraction:g}", what))
    return problems


def split_problems(
    splits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    where: str,
    own: bool,
) -> list[Problem]:
    """Classes that two splits share, and splits of fewer than two classes.

    `own` says whether the source named the splits; `where` is what the user typed.
    """
    problems = []
    classes = {split: np.unique(labels[positions]) for split, positions in splits.items()}
    for one, other in itertools.combinations([s for s in SPLITS if s in classes], 2):
        shared = [class_names[label] for label in np.intersect1d(classes[one], classes[other])]
        if shared:
            many = f"{len(shared)} classes are" if len(shared) > 1 else "1 class is"
            problems.append(
                Problem(
                    where,
                    f"{many} in both {one} and {other}: {shortened(shared)}.\n"
                    "Splits share no class: what is measured must be unseen in training. "
                    "Give each class one split.",
                )
            )
    needed = [split for split in SPLITS if split in splits or split != "val"]
    short = {split: len(classes.get(split, ())) for split in needed}
    short = {split: n for split, n in short.items() if n < 2}
    total = len(np.unique(labels))
    if not short:
        return problems
    if not own:
        parts = " and ".join(f"2 for {split}" for split in needed)
        words = f"has {total} class{'es' if total != 1 else ''}, and needs at least {parts}."
        mend = "Add classes" + (", or data.val_fraction=0." if "val" in splits else ".")
    else:
        words = "; ".join(
            f"the {split} split has {n} class{'es' if n != 1 else ''}, and needs at least 2"
            for split, n in short.items()
        )
        words, mend = (
            f"{words}.",
            "Move or add classes, or name no splits: they are then made by seed.",
        )
        if "val" in short and set(short) <= {"train", "val"}:
            mend = "Add training classes, or data.val_fraction=0 where no val split is named."
    return [*problems, Problem(where, f"{words}\n{mend}")]


def shortened(names: Sequence[Any], limit: int = 5) -> str:
    """`a, b, c and 7 more`: a list that fits one line of an error message."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
