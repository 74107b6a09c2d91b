"""Omniglot (Lake et al., Science 2015): 1,623 characters of 50 alphabets, each drawn by 20 people.

The authors' own parts are class-disjoint: the 964 characters of the 30 background alphabets train, the 659
of the 20 evaluation alphabets are tested (arXiv:1902.03477).  A class is a character as it was drawn.
Few-shot work often takes another set: Vinyals et al., arXiv:1606.04080, deal 1,200 characters of all
alphabets to training and make each character turned by 90, 180 and 270 degrees a class of its own; such
numbers do not compare.
"""

from pathlib import Path

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.files import images_below
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.sources import Source

# Addresses and checksums: torchvision.datasets.Omniglot.
SITE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
FILES = tuple(
    RemoteFile(
        f"{part}.zip",
        urls=(f"{SITE}/{part}.zip",),
        md5=md5,
        by_hand="https://github.com/brendenlake/omniglot, folder python",
    )
    for part, md5 in {
        "images_background": "68d2efa1b9178cc56df9314c21c6e718",
        "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
    }.items()
)
COUNTS = {"train": (19_280, 964), "test": (13_180, 659)}  # images, classes: 20 of each
FOLDERS = {"train": "images_background", "test": "images_evaluation"}


def load(
    *,
    root: str | None,
    name: str = "omniglot",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index images_background and images_evaluation at `root` or one directory below, as omniglot-py.

    Classes are named `<alphabet>/<character>`, for every alphabet has a character01, and are in the order
    of these names; superclasses are the alphabets.  protocol, val_fraction, seed, fold, folds: see
    `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, a small background set, or other counts.
    """
    source = Source(root, name, "Omniglot", FILES)
    place, _ = source.locate(FOLDERS, small_set)
    missing = [folder for folder in FOLDERS.values() if not (place / folder).is_dir()]
    if missing:
        raise source.refused(f"{place} lacks {missing[0]}. Get it: {source.prepare}")
    files = {s: [f"{f}/{p}" for p in images_below(place / f)] for s, f in FOLDERS.items()}
    paths = files["train"] + files["test"]
    characters = ["/".join(path.split("/")[1:3]) for path in paths]
    class_names, labels = np.unique(characters, return_inverse=True)
    _, alphabets = np.unique([path.split("/")[1] for path in paths], return_inverse=True)
    cut = len(files["train"])
    parts = {"train": np.arange(cut), "test": np.arange(cut, len(paths))}
    source.require_counts(labels, parts, COUNTS)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    names = tuple(class_names.tolist())
    return ImageIndex(name, place, np.array(paths), labels, names, splits, alphabets)


def small_set(place: Path) -> str | None:
    """A background set of five alphabets in place of the thirty."""
    if any((place / f"images_background_small{n}").is_dir() for n in (1, 2)):
        return "holds a small background set (5 alphabets), not images_background (30)."
    return None
