"""Which files are to be embedded, and what their classes are called."""

import csv
import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from dml.data.files import EXTENSIONS, is_image, missing_part, visible
from dml.data.index import shortened
from dml.errors import ConfigurationError, Problem

LINK = "a link that leads outside the folder"
LINKED = "a linked directory, which is not entered: it may lead anywhere, and in circles"


@dataclass
class Listing:
    """Images of a folder.

    root: resolved.  paths: relative to it, posix.  labels: class of each or None.  left_out: (path, why).
    """

    root: Path
    paths: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def of_folder(word: str, value: str) -> Listing:
    """Images at any depth; the class of DIR/<class>/... is its first directory.

    word: the option that names the folder.  Raises ConfigurationError: no folder, no images.
    """
    where = f"{word}={value}"
    found = Listing(folder(where, value))
    for directory, folders, names in os.walk(found.root):
        below = Path(directory).relative_to(found.root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        folders[:] = sorted(name for name in folders if visible(name))
        for name in folders:
            if (Path(directory) / name).is_symlink():
                found.left_out.append((prefix + name, LINKED))
        for name in sorted(names):
            if is_image(name):
                take(found, prefix + name, label_of(prefix + name))
    if not found.paths and not found.left_out:
        what = f"holds no images, that is, no files that end in\n{' '.join(EXTENSIONS)}"
        raise ConfigurationError([Problem(where, what)])
    return found


def of_labels(word: str, value: str, labels: str, split: str | None) -> Listing:
    """The images that a file lists: columns path, label and, where wanted, class_name and split.

    labels: within the folder, or absolute.  split: only its rows.  Raises ConfigurationError.
    """
    where = f"labels={labels}"
    found = Listing(folder(f"{word}={value}", value))
    file = found.root / Path(labels).expanduser()
    if not file.is_file():
        raise ConfigurationError([Problem(where, f"there is no file {file}.")])
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream, restkey="", restval=None)
            rows, columns = list(reader), reader.fieldnames or []
    except csv.Error as error:
        raise ConfigurationError([Problem(where, f"cannot be read as CSV ({error}).")]) from error
    wanted = ["path", "label", *(["split"] if split is not None else [])]
    lacking = [column for column in wanted if column not in columns]
    if lacking:
        what = f"has no column {' and no column '.join(lacking)}; it has {', '.join(columns)}."
        raise ConfigurationError([Problem(where, what)])
    ragged = [str(n) for n, row in enumerate(rows, 2) if None in row.values() or "" in row]
    if ragged:
        what = f"rows {shortened(ragged)} have not as many cells as the header."
        raise ConfigurationError([Problem(where, what)])
    if split is not None:
        splits = sorted({row["split"] for row in rows})
        rows = [row for row in rows if row["split"] == split]
        if not rows:
            what = f"the file has no such rows; its splits are {shortened(splits)}."
            raise ConfigurationError([Problem(f"split={split}", what)])
    seen: set[str] = set()
    for number, row in enumerate(rows, 2):
        path = posixpath.normpath(row["path"].strip())
        if path.startswith(("/", "../")) or path == ".." or not row["path"].strip():
            what = f"row {number} names {row['path']!r}; paths lie below the folder."
            raise ConfigurationError([Problem(where, what)])
        if path in seen:
            raise ConfigurationError([Problem(where, f"lists {path} twice.")])
        seen.add(path)
        label = (row.get("class_name") or row["label"]).strip()
        if not (found.root / path).exists():
            found.left_out.append((path, "there is no such file"))
        else:
            take(found, path, label or None)
    if not found.paths:
        raise ConfigurationError([Problem(where, f"none of its images is in {found.root}.")])
    return found


def folder(where: str, value: str) -> Path:
    """A directory, resolved.  Raises ConfigurationError."""
    directory = Path(value).expanduser().absolute()
    if not directory.is_dir():
        there = directory.exists()
        what = "is no directory." if there else f"there is no {missing_part(directory)}."
        raise ConfigurationError([Problem(where, what)])
    return directory.resolve()


def label_of(path: str) -> str | None:
    """`sparrow` of sparrow/1.jpg; None for an image that lies in no directory."""
    first, slash, _ = path.partition("/")
    return first if slash else None


def take(listing: Listing, path: str, label: str | None) -> None:
    """List a file, or say why not: a link out of the folder, a device, a link to itself."""
    try:
        file = (listing.root / path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        listing.left_out.append((path, f"cannot be opened ({getattr(error, 'strerror', error)})"))
        return
    if not file.is_relative_to(listing.root):
        listing.left_out.append((path, LINK))
    elif not file.is_file():
        listing.left_out.append((path, "no regular file"))
    else:
        listing.paths.append(path)
        listing.labels.append(label)
