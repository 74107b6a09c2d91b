"""PKU VehicleID (Liu et al., CVPR 2016): vehicles as surveillance cameras see them.

Its own lists are class-disjoint: 13,164 vehicles train, and 800, 1,600 or 2,400 others are the small,
medium and large test set.  Two ways to search them are in use, whose numbers do not compare.  gallery=one,
that of vehicle re-identification: one image of each vehicle, drawn at random, is the gallery, the others are
queries.  gallery=all, that of Smooth-AP (arXiv:2007.12163; src/evaluate.py of its code): every image is a
query, searched in all the others.
"""

from pathlib import Path
from random import Random

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.sources import Source

FILES = (
    RemoteFile(
        "VehicleID_V1.0.zip",
        by_hand="https://www.pkuml.org/resources/pku-vehicleid.html (a form; the authors send the password)",
    ),
)
# Images, classes: github.com/JDAI-CV/fast-reid, fastreid/data/datasets/vehicleid.py
COUNTS = {
    "train": (113_346, 13_164),
    "small": (6_493, 800),
    "medium": (13_377, 1_600),
    "large": (19_777, 2_400),
}
LISTS = {
    "train": "train_test_split/train_list.txt",
    "small": "train_test_split/test_list_800.txt",
    "medium": "train_test_split/test_list_1600.txt",
    "large": "train_test_split/test_list_2400.txt",
}


def load(
    *,
    root: str | None,
    name: str = "vehicleid",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
    test_set: str = "small",
    gallery: str = "one",
    gallery_seed: int = 0,
) -> ImageIndex:
    """Index image and train_test_split at `root` or one directory below (VehicleID_V1.0).

    test_set: small, medium or large.  gallery: one or all, see above; gallery_seed: of the images drawn for
    one.  Classes are in the order of the vehicles' numbers.  protocol, val_fraction, seed, fold, folds: see
    `dml.data.protocols.training_splits`; validation images are queries and gallery alike.

    Raises ConfigurationError: not there, not unpacked or in part, or other counts.
    """
    source = Source(root, name, "VehicleID", FILES)
    place, _ = source.locate({"lists": LISTS["train"]}, veri)
    lists = {part: source.rows(place / LISTS[part], 2) for part in ("train", test_set)}
    rows = lists["train"] + lists[test_set]
    paths = [f"image/{image}.jpg" for image, _ in rows]
    vehicles = source.numbers(place / "train_test_split", [vehicle for _, vehicle in rows])
    numbers, labels = np.unique(vehicles, return_inverse=True)
    cut = len(lists["train"])
    parts = {"train": np.arange(cut), test_set: np.arange(cut, len(rows))}
    source.require_counts(labels, parts, {part: COUNTS[part] for part in parts})
    source.require_files(place, paths)
    queries = None
    if gallery == "one":
        queries = np.ones(len(labels), bool)
        queries[drawn(labels, parts[test_set], gallery_seed)] = False
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = {"test": parts[test_set]} | training_splits(parts["train"], labels, seed=seed, **plan)
    names = tuple(str(number) for number in numbers)
    return ImageIndex(name, place, np.array(paths), labels, names, splits, queries=queries)


def drawn(labels: np.ndarray, positions: np.ndarray, seed: int) -> list[int]:
    """One of the `positions` of each class, drawn by `seed`; the same in every version of Python.

    labels: int64 [n].  positions: int64 [m].
    """
    rng = Random(seed)
    by_class = positions[np.argsort(labels[positions], kind="stable")]
    _, sizes = np.unique(labels[positions], return_counts=True)
    ends = np.cumsum(sizes)
    return [
        int(by_class[end - size + int(rng.random() * size)])
        for end, size in zip(ends, sizes, strict=True)
    ]


def veri(place: Path) -> str | None:
    """The other set of vehicles."""
    if (place / "image_query").is_dir() and (place / "image_train").is_dir():
        return "holds VeRi-776, not PKU VehicleID."
    return None
