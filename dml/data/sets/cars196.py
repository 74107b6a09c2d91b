"""Cars196 (Krause et al., 2013): 16,185 photographs of 196 makes and models.

Classes 1-98 train, 99-196 are tested (Song et al., CVPR 2016, arXiv:1511.06452), over all images pooled.  The
split that comes with the data (8,144 and 8,041 images) has every class on both sides and is another task.
Class ids are those of the .mat files; sorted class names would be another order, hence another split.
"""

import csv
from pathlib import Path

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.sources import Source

GONE = "the authors' site is gone; bring a copy that has this checksum"
KAGGLE = "https://www.kaggle.com/datasets/jutrera/stanford-car-dataset-by-classes-folder"
FILES = (
    RemoteFile(
        "car_ims.tgz",
        md5="d5c8f0aa497503f355e17dc7886c3f14",
        by_hand=GONE,
        packaging="car_ims",
    ),
    RemoteFile(
        "cars_annos.mat",
        md5="b407c6086d669747186bd1d764ff9dbc",
        by_hand=GONE,
        packaging="car_ims",
    ),
    RemoteFile(
        "cars_train.tgz",
        md5="065e5b463ae28d29e77c1b4b166cfe61",
        sha256="512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
        size=979_269_282,
        by_hand=GONE,
        packaging="cars_train",
    ),
    RemoteFile(
        "cars_test.tgz",
        md5="4ce7ebf6a94d07f1952d94dd34c4d501",
        sha256="bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
        size=977_350_468,
        by_hand=GONE,
        packaging="cars_train",
    ),
    RemoteFile(
        "car_devkit.tgz",
        urls=("https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",),
        md5="c3b158d763b6e2245038c8ad08e45376",
        sha256="b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
        size=330_960,
        packaging="cars_train",
    ),
    RemoteFile(
        "cars_test_annos_withlabels.mat",
        md5="b0a2b23655a3edd16d84508592a98d10",
        sha256="790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
        size=185_758,
        by_hand=GONE,
        packaging="cars_train",
    ),
    RemoteFile(
        "stanford-car-dataset-by-classes-folder.zip", by_hand=KAGGLE, packaging="class folders"
    ),
)
COUNTS = {"train": (8_054, 98), "test": (8_131, 98)}  # images, classes
MARKERS = {"car_ims": "car_ims", "cars_train": "cars_train", "class folders": "anno_train.csv"}


def load(
    *,
    root: str | None,
    name: str = "cars196",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index the directory at `root`, or one below it, that has one of three layouts.

    car_ims/ and cars_annos.mat; or cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat; or
    car_data/{train,test}/<class name>/, names.csv, anno_train.csv and anno_test.csv (Kaggle).
    Images are in the order of class id, then path.  protocol, val_fraction, seed, fold, folds: see
    `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, half of it, or other counts.
    """
    source = Source(root, name, "Cars196", FILES)
    directory, layout = source.locate(MARKERS, mistaken)
    read = {"car_ims": car_ims, "cars_train": train_and_test, "class folders": class_folders}
    found, names = read[layout](source, directory)
    found.sort()
    labels = np.array([class_id for class_id, _ in found], np.int64) - 1
    paths = [path for _, path in found]
    seen = labels < COUNTS["train"][1]
    parts = {"train": np.flatnonzero(seen), "test": np.flatnonzero(~seen)}
    source.require_counts(labels, parts, COUNTS)
    source.require_files(directory, paths)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    return ImageIndex(name, directory, np.array(paths), labels, tuple(names), splits)


Found = tuple[
    list[tuple[int, str]], list[str]
]  # (class id from 1, path) of each image; class names


def car_ims(source: Source, directory: Path) -> Found:
    """car_ims/000001.jpg ... and cars_annos.mat."""
    file = "cars_annos.mat"
    found = annotations(source, directory, "relative_im_path", file)
    return found, read_mat(source, directory, "class_names", file).tolist()


def train_and_test(source: Source, directory: Path) -> Found:
    """cars_train/00001.jpg ..., cars_test/00001.jpg ..., the devkit and the labels of the test part."""
    if not (directory / "cars_test").is_dir():
        raise source.refused(HALF.format("cars_train", "cars_test"))
    found = []
    for split, file in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        nested = f"cars_{split}/cars_{split}"  # as some copies have it
        folder = nested if (directory / nested).is_dir() else f"cars_{split}"
        rows = annotations(source, directory, "fname", f"{file}.mat", f"devkit/{file}.mat")
        found += [(class_id, f"{folder}/{name}") for class_id, name in rows]
    names = read_mat(source, directory, "class_names", "devkit/cars_meta.mat", "cars_meta.mat")
    return found, names.tolist()


def class_folders(source: Source, directory: Path) -> Found:
    """car_data/car_data/train/<class name>/00001.jpg ..., names.csv in the order of ids, anno_*.csv."""
    names = [row[0].strip() for row in read_csv(source, directory / "names.csv")]
    folders = [name.replace("/", "-") for name in names]  # Ram C/V
    nested = "car_data/car_data"
    top = nested if (directory / nested).is_dir() else "car_data"
    found = []
    for split in ("train", "test"):
        file = directory / f"anno_{split}.csv"
        rows = read_csv(source, file)
        ids = source.numbers(file, [row[-1] for row in rows])
        if len(ids) and not 1 <= ids.min() <= ids.max() <= len(names):
            raise source.refused(f"{file} has classes beyond the {len(names)} of names.csv.")
        found += [
            (class_id, f"{top}/{split}/{folders[class_id - 1]}/{row[0]}")
            for class_id, row in zip(ids.tolist(), rows, strict=True)
        ]
    return found, names


HALF = (
    "holds {} without {}: one half of the split by images that comes with the data.\n"
    "Every class is in both halves; the benchmark pools all 16,185 images. Put the other half there, "
    "devkit/ and cars_test_annos_withlabels.mat."
)


def mistaken(place: Path) -> str | None:
    """What a directory holds that is not the whole of Cars196."""
    if (place / "cars_test").is_dir():
        return HALF.format("cars_test", "cars_train")
    if (place / "car_data").is_dir():
        return (
            "holds class folders without anno_train.csv, anno_test.csv and names.csv, which number the "
            "classes.\nSorted names would be another split. Put those files beside car_data/."
        )
    return None


def annotations(
    source: Source, directory: Path, path_field: str, *candidates: str
) -> list[tuple[int, str]]:
    """(class id, path) of each row of `annotations` in a .mat file."""
    rows = read_mat(source, directory, "annotations", *candidates)
    if not {"class", path_field} <= set(rows.dtype.names or ()):
        raise source.refused(
            f"{candidates[0]} has no classes: it is the list without labels.\n"
            "The benchmark needs cars_test_annos_withlabels.mat."
        )
    found = list(zip(rows["class"].tolist(), rows[path_field].tolist(), strict=True))
    if odd := [row for row in found if not (is_whole(row[0]) and isinstance(row[1], str))]:
        raise source.refused(f"{candidates[0]} is damaged: {odd[0]!r:.80} is no class and path.")
    return found


def is_whole(value: object) -> bool:
    """Whether a cell of a .mat file is a whole number."""
    return isinstance(value, int | np.integer)


def read_mat(source: Source, directory: Path, variable: str, *candidates: str) -> np.ndarray:
    """One variable of the first of some .mat files that is there."""
    from scipy.io import loadmat  # here alone: it takes half a second to import

    path = next((directory / c for c in candidates if (directory / c).is_file()), None)
    if path is None:
        raise source.refused(
            f"lacks {' or '.join(candidates)}, which numbers the classes.\n"
            f"Put it there, or get it: {source.prepare}"
        )
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=[variable])[variable])
    except Exception as error:  # a damaged .mat fails in any way; each means: not a whole file
        if isinstance(error, KeyError) and error.args == (variable,):
            raise source.refused(f"{path} is another file: it has no {variable}.") from error
        reason = f"{type(error).__name__}: {error}"
        raise source.refused(f"cannot read {path} ({reason:.200}). Get it again.") from error


def read_csv(source: Source, path: Path) -> list[list[str]]:
    """Rows of a .csv file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise source.refused(f"cannot read {path} ({reason}). Get it again.") from error
