"""Which images the doctor looks at: files, and the class and split of each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dml.data.fetch.summary import parts_of
from dml.data.files import missing_part, subdirectories, visible
from dml.data.index import SPLITS, ImageIndex
from dml.data.sets.folder import class_files, empty, holds_classes
from dml.errors import ConfigurationError, Problem


@dataclass(frozen=True)
class Labelled:
    """A labelled set of images.

    paths: relative to `root`.  splits: "" where there is none.  left_out: other files below `root`.
    """

    name: str
    root: Path
    paths: Sequence[str]
    classes: Sequence[str]
    splits: Sequence[str]
    left_out: Sequence[str] = ()


def from_index(index: ImageIndex) -> Labelled:
    """The images of an index, with the names of their classes and splits."""
    splits = [""] * len(index.labels)
    for name, positions in parts_of(index).items():
        for position in positions:
            splits[position] = name
    classes = [index.class_names[label] for label in index.labels]
    name = f"{index.name} ({index.root.name})"
    return Labelled(name, index.root, [str(path) for path in index.paths], classes, splits)


def from_directory(root: str) -> Labelled:
    """The images of a directory of classes, or of its train, val and test with classes.

    Unlike `data=folder` it takes what training would refuse: a single class, a class in two splits.

    Raises ConfigurationError: no such directory, no images in class directories.
    """
    top, where = Path(root).expanduser().absolute(), f"root={root}"
    if not top.is_dir():
        what = "is no directory." if top.exists() else f"there is no {missing_part(top)}."
        raise ConfigurationError([Problem(where, what)])
    nested = [s for s in SPLITS if s in subdirectories(top) and holds_classes(top / s)]
    found = [
        (f"{split}/{path}" if split else path, name, split)
        for split in nested or [""]
        for name, paths in class_files(top / split).items()
        for path in paths
    ]
    if not found:
        raise ConfigurationError([empty(top, where)])
    paths, classes, splits = (list(column) for column in zip(*found, strict=True))
    left_out = sorted(set(files_below(top)) - set(paths))
    return Labelled(top.name, top, paths, classes, splits, left_out)


def files_below(directory: Path) -> list[str]:
    """Visible files at any depth, relative to `directory` in posix form."""
    found = []
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if visible(name)]
        below = Path(folder).relative_to(directory)
        found += [(below / name).as_posix() for name in names if visible(name)]
    return found
