"""CIFAR-100 (Krizhevsky, 2009): 60,000 images of 32 x 32 pixels in 100 classes of 20 kinds.

The literature mostly trains and tests on the same classes.  Here, by our choice, the first fifty classes
train and the last fifty are tested, each with the images of both published parts.
"""

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets import cifar
from dml.data.sets.halves import halves
from dml.data.sets.sources import Source

# Address and checksum: torchvision.datasets.CIFAR100.
FILES = (
    RemoteFile(
        "cifar-100-python.tar.gz",
        urls=("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        by_hand="https://www.cs.toronto.edu/~kriz/cifar.html (the Python version)",
    ),
)
LAYOUT = cifar.Layout(
    folder="cifar-100-python",
    batches={"train": ["train"], "test": ["test"]},
    meta="meta",
    levels=["coarse_label", "fine_label"],
)
# Images, classes: 600 of each class, says the page.
COUNTS = {"train": (30_000, 50), "test": (30_000, 50)}
IMAGES = "cifar100-images"


def load(
    *,
    root: str | None,
    name: str = "cifar100",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index cifar-100-python at `root` or below it, where torchvision unpacks it.

    Its images are written beside it as PNG files at the first call.  Classes are in the order of their
    names, which is that of their ids; superclasses are the 20 coarse labels.  protocol, val_fraction, seed,
    fold, folds: see `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, other counts, or no place to write.
    """
    source = Source(root, name, "CIFAR-100", FILES)
    directory, paths = cifar.images(source, LAYOUT, IMAGES, COUNTS)
    class_names, labels = np.unique([p.split("/")[1] for p in paths], return_inverse=True)
    _, groups = np.unique([p.split("/")[0] for p in paths], return_inverse=True)
    parts = halves(labels)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    names = tuple(class_names.tolist())
    return ImageIndex(name, directory, np.array(paths), labels, names, splits, groups)
