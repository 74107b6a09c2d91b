"""CIFAR-10 (Krizhevsky, 2009): 60,000 images of 32 x 32 pixels in 10 classes.

The literature trains and tests on the same ten classes (hashing).  Here, by our choice, the first five
classes train and the last five are tested, each with the images of both published parts.  Ten classes
make a quick check, not a benchmark.
"""

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets import cifar
from dml.data.sets.halves import halves
from dml.data.sets.sources import Source

# Address and checksum: torchvision.datasets.CIFAR10.
FILES = (
    RemoteFile(
        "cifar-10-python.tar.gz",
        urls=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
        md5="c58f30108f718f92721af3b95e74349a",
        by_hand="https://www.cs.toronto.edu/~kriz/cifar.html (the Python version)",
    ),
)
LAYOUT = cifar.Layout(
    folder="cifar-10-batches-py",
    batches={"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]},
    meta="batches.meta",
    levels=["label"],
)
# Images, classes: 6,000 of each class, says the page.
COUNTS = {"train": (30_000, 5), "test": (30_000, 5)}
IMAGES = "cifar10-images"


def load(
    *,
    root: str | None,
    name: str = "cifar10",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index cifar-10-batches-py at `root` or below it, where torchvision unpacks it.

    Its images are written beside it as PNG files at the first call.  Classes are in the order of their
    names, which is that of their ids.  protocol, val_fraction, seed, fold, folds: see
    `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, other counts, or no place to write.
    """
    source = Source(root, name, "CIFAR-10", FILES)
    directory, paths = cifar.images(source, LAYOUT, IMAGES, COUNTS)
    class_names, labels = np.unique([p.split("/")[0] for p in paths], return_inverse=True)
    parts = halves(labels)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    names = tuple(class_names.tolist())
    return ImageIndex(name, directory, np.array(paths), labels, names, splits)
