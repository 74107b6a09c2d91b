"""iNaturalist-2018 with the class-disjoint split of Smooth-AP (Brown et al., ECCV 2020, arXiv:2007.12163).

The 461,939 training and validation images of the competition, of 8,142 species; those of 5,690 species train,
those of the other 2,452 are tested.  The competition's own split has every species in both parts.
"""

from pathlib import Path

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.sources import Source

LISTS = "https://drive.google.com/uc?id=1sXfkBTFDrRU3__-NUs1qBP3sf_0uMB98"
FILES = (
    # github.com/visipedia/inat_comp, 2018/README.md
    RemoteFile(
        "train_val2018.tar.gz",
        urls=("https://ml-inat-competition-datasets.s3.amazonaws.com/2018/train_val2018.tar.gz",),
        md5="b1c6952ce38f31868cc50ea72d066cc3",
        by_hand="https://github.com/visipedia/inat_comp, folder 2018 (120 GB)",
    ),
    # github.com/Andrew-Brown1/Smooth_AP; the address as in pytorch_metric_learning.datasets.INaturalist2018
    RemoteFile(
        "Inat_dataset_splits.zip",
        urls=(LISTS,),
        by_hand="https://github.com/Andrew-Brown1/Smooth_AP, section Data",
    ),
)
# Images: asserted by pytorch-metric-learning's tests/datasets/test_inaturalist2018.py; classes: the paper,
# and 5,690 + 2,452 = 8,142, 325,846 + 136,093 = 437,513 + 24,426 of the competition's README.
COUNTS = {"train": (325_846, 5_690), "test": (136_093, 2_452)}
FOLDER = "Inat_dataset_splits/"


def load(
    *,
    root: str | None,
    name: str = "inat2018",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index Smooth-AP's lists, in Inat_dataset_splits or beside train_val2018, at `root` or one below.

    A line is an image, train_val2018/<group>/<category>/<hash>.jpg.  Classes are named `<group>/<category>`,
    the categories being numbers, and are in the order of the numbers; superclasses are the 14 groups
    (Plantae, Insecta, ...).  protocol, val_fraction, seed, fold, folds: see
    `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, no lists, or other counts.
    """
    source = Source(root, name, "iNaturalist-2018 with Smooth-AP's lists", FILES)
    first = "Inaturalist_train_set1.txt"
    place, layout = source.locate({FOLDER: FOLDER + first, "": first}, images_alone)
    lists = {
        split: [row[0] for row in source.rows(place / f"{layout}Inaturalist_{split}_set1.txt", 1)]
        for split in COUNTS
    }
    paths = lists["train"] + lists["test"]
    cells = [path.split("/") for path in paths]
    odd = next((path for path, c in zip(paths, cells, strict=True) if not is_image(c)), None)
    if odd is not None:
        raise source.refused(
            f"its lists name {odd!r}, which is no train_val2018/<group>/<number>/*.jpg."
        )
    ids, start, labels = np.unique(
        np.array([int(category) for _, _, category, _ in cells], np.int64),
        return_index=True,
        return_inverse=True,
    )
    _, groups = np.unique([group for _, group, _, _ in cells], return_inverse=True)
    cut = len(lists["train"])
    parts = {"train": np.arange(cut), "test": np.arange(cut, len(paths))}
    source.require_counts(labels, parts, COUNTS)
    source.require_files(place, paths)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    names = tuple(f"{cells[i][1]}/{number}" for number, i in zip(ids, start, strict=True))
    return ImageIndex(name, place, np.array(paths), labels, names, splits, groups)


def is_image(cells: list[str]) -> bool:
    """Whether a path is that of an image of the competition."""
    return len(cells) == 4 and cells[0] == "train_val2018" and cells[2].isdecimal()


def images_alone(place: Path) -> str | None:
    """The competition's data without the lists that split it."""
    if (place / "train_val2018").is_dir():
        return (
            "has the images, but not the lists that split them (Inat_dataset_splits).\n"
            f"Unpack them beside train_val2018; they are at {LISTS}"
        )
    return None
