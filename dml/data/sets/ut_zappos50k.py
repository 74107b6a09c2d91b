"""UT-Zappos50K (Yu and Grauman, CVPR 2014): 50,025 catalogue images of shoes, in 4 categories of 21 types.

It was made to compare attributes and has no split by classes.  Here a class is a type within its category
(Boots/Ankle), and by our choice the first eleven in alphabetical order train and the last ten are tested.
"""

from pathlib import Path

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.files import images_below
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.halves import halves
from dml.data.sets.sources import Source

SITE = "https://vision.cs.utexas.edu/projects/finegrained/utzap50k"
FILES = (RemoteFile("ut-zap50k-images.zip", urls=(f"{SITE}/ut-zap50k-images.zip",), by_hand=SITE),)
# Images, classes.  How many images each type has is nowhere published, hence the whole set's alone.
COUNTS = {"all": (50_025, 21)}
FOLDERS = {"images": "ut-zap50k-images", "square": "ut-zap50k-images-square"}


def load(
    *,
    root: str | None,
    name: str = "ut_zappos50k",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index ut-zap50k-images, or else ut-zap50k-images-square, at `root` or one directory below.

    Images are <category>/<type>/<brand>/*.jpg.  Classes are named `<category>/<type>` and are in
    the order of these names; superclasses are the categories.  protocol, val_fraction, seed, fold, folds:
    see `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, or other counts.
    """
    source = Source(root, name, "UT-Zappos50K", FILES)
    place, layout = source.locate(FOLDERS, attributes_alone)
    directory = place / FOLDERS[layout]
    paths = images_below(directory)
    types = ["/".join(path.split("/")[:2]) for path in paths]
    class_names, labels = np.unique(types, return_inverse=True)
    _, categories = np.unique([path.split("/")[0] for path in paths], return_inverse=True)
    source.require_counts(labels, {"all": np.arange(len(labels))}, COUNTS)
    parts = halves(labels)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    names = tuple(class_names.tolist())
    return ImageIndex(name, directory, np.array(paths), labels, names, splits, categories)


def attributes_alone(place: Path) -> str | None:
    """The tables without the images."""
    if (place / "meta-data.csv").exists() or (place / "ut-zap50k-data").is_dir():
        return "holds the tables of UT-Zappos50K (ut-zap50k-data), not its images (ut-zap50k-images.zip)."
    return None
