"""CUB-200-2011 (Wah et al., 2011): 11,788 photographs of 200 kinds of birds.

Classes 1-100 train, 101-200 are tested: Song et al., CVPR 2016, arXiv:1511.06452.  The split that comes with
the data (train_test_split.txt) has every class on both sides and is another task.
"""

from pathlib import Path

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.sources import Source

FILES = (
    RemoteFile(
        "CUB_200_2011.tgz",
        urls=("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
        md5="97eceeb196236b17998738112f37df78",
        sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        size=1_150_585_339,
        by_hand="https://data.caltech.edu/records/65de6-vp158",
    ),
)
COUNTS = {"train": (5_864, 100), "test": (5_924, 100)}  # images, classes


def load(
    *,
    root: str | None,
    name: str = "cub200",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index the directory CUB_200_2011 at `root` or below it.

    Classes are in the order of their ids.  protocol, val_fraction, seed, fold, folds: see
    `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, CUB-200 of 2010, or other counts.
    """
    source = Source(root, name, "CUB-200-2011", FILES)
    directory, _ = source.locate({"lists": "image_class_labels.txt"}, another_set)
    images, names, classes = (
        dict(source.rows(directory / f"{file}.txt", 2))
        for file in ("images", "classes", "image_class_labels")
    )
    misplaced = [n for n, p in images.items() if p.split("/")[0] != names.get(classes.get(n, ""))]
    if misplaced or len(images) != len(classes):
        raise source.refused(
            "its lists do not belong together: images.txt and image_class_labels.txt differ"
            f"{f' about {images[misplaced[0]]}' if misplaced else ''}.\nUnpack it again: {source.prepare}"
        )
    paths = [f"images/{path}" for path in images.values()]
    labels = source.numbers(directory / "image_class_labels.txt", [classes[n] for n in images]) - 1
    seen = labels < COUNTS["train"][1]
    parts = {"train": np.flatnonzero(seen), "test": np.flatnonzero(~seen)}
    source.require_counts(labels, parts, COUNTS)
    source.require_files(directory, paths)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    class_names = tuple(names[n] for n in sorted(names, key=lambda n: (len(n), n)))  # 2 before 10
    return ImageIndex(name, directory, np.array(paths), labels, class_names, splits)


def another_set(place: Path) -> str | None:
    """What else of that name a directory holds."""
    if (place / "lists" / "files.txt").exists():
        return (
            "is CUB-200 of 2010 (6,033 images), not CUB-200-2011 (11,788).\n"
            "Results on the two do not compare; get the other: dml-data prepare=cub200 root=DIR"
        )
    if (place / "train").is_dir() and (place / "test").is_dir():
        return (
            "holds train/ and test/ without the lists. If they are the split by images that comes with\n"
            "the data (5,994 and 5,794), every class is in both; the benchmark needs CUB_200_2011.tgz "
            "as it is."
        )
    return None
