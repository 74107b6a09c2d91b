"""The user's own images, one directory per class.

`DIR/<class>/...` with images at any depth below the class; or, where DIR has both `train` and `test`
directories that hold class directories themselves, `DIR/train/<class>/...`, `DIR/test/<class>/...` and
where wanted `DIR/val/<class>/...`, which are then the splits.
"""

from pathlib import Path

import numpy as np

from dml.data.files import (
    EXTENSIONS,
    any_image,
    images_below,
    is_image,
    missing_part,
    subdirectories,
)
from dml.data.index import SPLITS, ImageIndex, shortened
from dml.data.protocols import (
    completed_splits,
    fraction_problems,
    own_val_problems,
    protocol_problems,
    split_problems,
)
from dml.errors import ConfigurationError, Problem


def load(
    *,
    root: str | None,
    name: str = "folder",
    protocol: str = "standard",
    seed: int = 0,
    test_fraction: float = 0.5,
    val_fraction: float = 0.1,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index the images under `root`; class names are directory names, in sorted order.

    Without directories `train` and `test`, whole classes are dealt to them by `seed`: `test_fraction` of
    all classes.  Without `val`, `val_fraction` of the training classes becomes it (0: none).  Other
    protocols: `dml.data.protocols`.
    Files with other extensions (`EXTENSIONS`), hidden ones (`.`, `._`) and images beside the class
    directories are left out.

    Raises ConfigurationError with every problem found: no such directory, no class directories, no
    images, too few classes, a class in two splits, a fraction out of range.
    """
    where = f"data.root={root}"
    problems = fraction_problems(test_fraction)
    problems += protocol_problems(protocol, val_fraction, fold, folds)
    directory = Path(root or "").expanduser().absolute()
    if not root:
        problems.append(Problem("data.root", "has no value. Add data.root=DIR, your images."))
    elif not directory.exists():
        problems.append(Problem(where, f"there is no {missing_part(directory)}."))
    elif not directory.is_dir():
        problems.append(Problem(where, "is a file. Give the directory that holds the classes."))
    if problems:
        raise ConfigurationError(problems)

    top = subdirectories(directory)
    tree = {split: directory / split for split in SPLITS if split in top}
    nested = [split for split, folder in tree.items() if holds_classes(folder)]
    problems = []
    if {"train", "test"} <= set(nested):
        for other in [n for n in top if n not in SPLITS and any_image(directory / n)]:
            problems.append(
                Problem(
                    where,
                    f"holds {other}/ beside train/ and test/, and it belongs to no split.\n"
                    "Move its images into train, val or test, or out of the directory.",
                )
            )
        files = {split: class_files(tree[split]) for split in SPLITS if split in nested}
    elif nested:
        have, lack = (
            " and ".join(f"{split}/" for split in splits)
            for splits in (
                [split for split in SPLITS if split in nested],
                [split for split in ("train", "test") if split not in nested],
            )
        )
        raise ConfigurationError(
            [
                Problem(
                    where,
                    f"has {have} with class directories, but no {lack} with any.\n"
                    "Splits are train/<class>/ and test/<class>/ (and val/<class>/). For a split by "
                    f"seed give the classes' own directory: data.root={directory / nested[0]}",
                )
            ]
        )
    else:
        files = {"": class_files(directory)}

    found = [
        (split, class_name, f"{split}/{path}" if split else path)
        for split, classes in files.items()
        for class_name, paths in classes.items()
        for path in paths
    ]
    if not found:
        problems.append(empty(directory, where))
    if problems:
        raise ConfigurationError(problems)
    class_names, labels = np.unique([name for _, name, _ in found], return_inverse=True)
    labels = labels.reshape(-1).astype(np.int64)
    given = None
    if "" not in files:
        of = np.array([split for split, _, _ in found])
        given = {split: np.flatnonzero(of == split).astype(np.int64) for split in files}
    splits = completed_splits(
        given,
        labels,
        seed=seed,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        protocol=protocol,
        fold=fold,
        folds=folds,
    )
    names, closed_set = tuple(str(n) for n in class_names), protocol == "closed_set"
    problems = own_val_problems(given, protocol)
    problems += split_problems(splits, labels, names, where, given is not None, closed_set)
    if problems:
        raise ConfigurationError(problems)
    paths = np.array([path for _, _, path in found])
    return ImageIndex(name, directory, paths, labels, names, splits, closed_set=closed_set)


def class_files(directory: Path) -> dict[str, list[str]]:
    """Class name -> its images, relative to `directory`. Directories without images are no classes."""
    classes = {c: images_below(directory / c) for c in subdirectories(directory)}
    return {c: [f"{c}/{path}" for path in paths] for c, paths in classes.items() if paths}


def holds_classes(directory: Path) -> bool:
    """Whether a directory has directories with images, and no images of its own."""
    return not any(is_image(file.name) for file in directory.iterdir()) and any(
        any_image(directory / name) for name in subdirectories(directory)
    )


def empty(directory: Path, where: str) -> Problem:
    """What to say of a directory without classes."""
    here = sorted(file.name for file in directory.iterdir() if is_image(file.name))
    if here:
        return Problem(
            where,
            f"holds {len(here)} images ({shortened(here, 3)}) but no class directories.\n"
            "Move them to DIR/<class>/, or list them in a file: data=csv data.labels=FILE",
        )
    accepted = " ".join(sorted(EXTENSIONS))
    return Problem(
        where,
        f"holds no images. Expected DIR/<class>/<image>, with one of the extensions\n{accepted}",
    )
