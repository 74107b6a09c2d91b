"""Oxford Flowers-102 (Nilsback and Zisserman, ICVGIP 2008): 8,189 photographs of 102 kinds of flowers.

The split that comes with the data (setid.mat) has every class in all its parts.  Here, by our choice,
classes 1-51 train and 52-102 are tested.
"""

from pathlib import Path

import numpy as np

from dml.data.fetch.download import RemoteFile, difference
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.halves import halves
from dml.data.sets.sources import Source

# Addresses and checksums: torchvision.datasets.Flowers102.
SITE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
FILES = tuple(
    RemoteFile(file, urls=(f"{SITE}/{file}",), md5=md5, by_hand=SITE)
    for file, md5 in {
        "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
        "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    }.items()
)
# Images, classes.  How many images each half has is nowhere published; the checksum of imagelabels.mat,
# which `load` compares, decides it.
COUNTS = {"all": (8_189, 102)}


def load(
    *,
    root: str | None,
    name: str = "flowers102",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index jpg and imagelabels.mat at `root` or one directory below (torchvision: flowers-102).

    Classes are named by their ids, 001 to 102, and in that order.  protocol, val_fraction, seed, fold, folds:
    see `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, the 17 flowers, or other counts.
    """
    source = Source(root, name, "Oxford Flowers-102", FILES)
    place, _ = source.locate({"labels": "imagelabels.mat"}, other_flowers)
    wrong = difference(place / "imagelabels.mat", FILES[1])
    if wrong:
        raise source.refused(f"imagelabels.mat {wrong}.\nGet it again: {source.prepare}")
    ids = labels_of(place / "imagelabels.mat")
    paths = [f"jpg/image_{number:05}.jpg" for number in range(1, len(ids) + 1)]
    numbers, labels = np.unique(ids, return_inverse=True)
    source.require_counts(labels, {"all": np.arange(len(labels))}, COUNTS)
    source.require_files(place, paths)
    parts = halves(labels)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    names = tuple(f"{number:03}" for number in numbers)
    return ImageIndex(name, place, np.array(paths), labels, names, splits)


def labels_of(file: Path) -> np.ndarray:
    """Class ids int64 [n] from 1 on, of images 1 to n."""
    from scipy.io import loadmat  # here alone: it takes a fifth of a second to import

    return loadmat(file)["labels"].reshape(-1).astype(np.int64)


def other_flowers(place: Path) -> str | None:
    """The smaller set of the same authors, or images without their labels."""
    if (place / "jpg" / "image_0001.jpg").exists():
        return "holds Flowers-17 (1,360 images), not Flowers-102 (8,189)."
    if (place / "jpg" / "image_00001.jpg").exists():
        return f"has the images but no imagelabels.mat. Put it beside jpg, from {SITE}"
    return None
