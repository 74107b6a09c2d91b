"""The user's own images, one directory per class.

`DIR/<class>/...` with images at any depth below the class; or, where DIR has both `train` and `test`
directories that hold class directories themselves, `DIR/train/<class>/...`, `DIR/test/<class>/...` and
where wanted `DIR/val/<class>/...`, which are then the splits.
"""

import os
from pathlib import Path

import numpy as np

from dml.data.index import (
    SPLITS,
    ImageIndex,
    completed_splits,
    fraction_problems,
    shortened,
    split_problems,
)
from dml.errors import ConfigurationError, Problem

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def load(
    *,
    root: str | None,
    name: str = "folder",
    seed: int = 0,
    test_fraction: float = 0.5,
    val_fraction: float = 0.1,
) -> ImageIndex:
    """Index the images under `root`; class names are directory names, in sorted order.

    Without directories `train` and `test`, whole classes are dealt to them by `seed`: `test_fraction` of
    all classes.  Without `val`, `val_fraction` of the training classes becomes it (0: none).
    Files with other extensions (`EXTENSIONS`), hidden ones (`.`, `._`) and images beside the class
    directories are left out.

    Raises ConfigurationError with every problem found: no such directory, no class directories, no
    images, too few classes, a class in two splits, a fraction out of range.
    """
    where = f"data.root={root}"
    problems = fraction_problems(test_fraction, val_fraction)
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
        given, labels, seed=seed, test_fraction=test_fraction, val_fraction=val_fraction
    )
    names = tuple(str(class_name) for class_name in class_names)
    problems = split_problems(splits, labels, names, where, given is not None)
    if problems:
        raise ConfigurationError(problems)
    paths = np.array([path for _, _, path in found])
    return ImageIndex(name, directory, paths, labels, names, splits)


def missing_part(path: Path) -> str:
    """`directory /a/b (the last that exists is /a)`: where a path that does not exist goes wrong."""
    parent = next(p for p in path.parents if p.exists())
    return f"{path}; of its path, {parent} exists"


def visible(name: str) -> bool:
    """Whether a file or directory counts: not hidden, and not what macOS leaves in archives."""
    return not name.startswith(".") and name != "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file name is that of an image we would open."""
    return visible(name) and name.lower().endswith(EXTENSIONS)


def subdirectories(directory: Path) -> list[str]:
    """Names of the visible directories in `directory`, sorted."""
    with os.scandir(directory) as entries:
        return sorted(e.name for e in entries if visible(e.name) and e.is_dir())


def images_below(directory: Path) -> list[str]:
    """Images at any depth, relative to `directory` in posix form, sorted."""
    found = []
    for folder, folders, files in os.walk(directory):
        folders[:] = [f for f in folders if visible(f)]
        below = Path(folder).relative_to(directory).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found += [prefix + file for file in files if is_image(file)]
    return sorted(found)


def class_files(directory: Path) -> dict[str, list[str]]:
    """Class name -> its images, relative to `directory`. Directories without images are no classes."""
    classes = {c: images_below(directory / c) for c in subdirectories(directory)}
    return {c: [f"{c}/{path}" for path in paths] for c, paths in classes.items() if paths}


def any_image(directory: Path) -> bool:
    """Whether there is an image at any depth."""
    return any(is_image(file) for _, _, files in os.walk(directory) for file in files)


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
