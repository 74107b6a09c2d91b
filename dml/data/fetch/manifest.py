"""What the images of a data set were when it was prepared: class, size and MD5 of every file."""

import csv
import gzip
import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from dml.data.index import ImageIndex
from dml.data.progress import byte_bar
from dml.errors import RunError

COLUMNS = ("path", "class", "bytes", "md5")


class Entry(NamedTuple):
    """One row: the image's class, its size in bytes, its MD5 in hexadecimal."""

    class_name: str
    size: int
    md5: str


def file_of(index: ImageIndex, root: Path) -> Path:
    """Where the manifest of a data set lies: in the directory that the user gave."""
    return root / f"{index.name}.manifest.csv.gz"


def content(index: ImageIndex) -> bytes:
    """The manifest of the images as they are.  Raises RunError if one cannot be read."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    sizes, done = sizes_of(index), 0
    with byte_bar("Recording the images", sum(size or 0 for size in sizes)) as tell:
        for relative, class_name, size in zip(index.paths, classes_of(index), sizes, strict=True):
            path = index.root / relative
            try:
                writer.writerow([relative, class_name, size, md5_of(path)])
            except OSError as error:
                raise RunError(f"cannot read {path} ({error.strerror}).") from error
            done += size or 0
            tell(done)
    return gzip.compress(text.getvalue().encode(), mtime=0)


def read(path: Path) -> dict[str, Entry]:
    """Image -> its entry.  Raises RunError if the file is no manifest."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)}")
        return {name: Entry(class_name, int(size), md5) for name, class_name, size, md5 in rows}
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise RunError(
            f"{path} cannot be read ({error}).\nRemove it; dml-data prepare=... writes it anew."
        ) from error


def differences(index: ImageIndex, path: Path) -> list[str]:
    """How the images differ from the manifest at `path`, a line each. Reads every image."""
    recorded = read(path)
    sizes = sizes_of(index)
    names = [str(relative) for relative in index.paths]
    found = [f"{name}: is no longer listed" for name in sorted(recorded.keys() - set(names))]
    done = 0
    with byte_bar("Checking the images", sum(size or 0 for size in sizes)) as tell:
        for name, class_name, size in zip(names, classes_of(index), sizes, strict=True):
            wrong = difference(index.root / name, class_name, size, recorded.get(name))
            if wrong:
                found.append(f"{name}: {wrong}")
            done += size or 0
            tell(done)
    return found


def difference(path: Path, class_name: str, size: int | None, entry: Entry | None) -> str | None:
    """How one image differs from its entry, or None."""
    if entry is None:
        return "is not in the record"
    if size is None:
        return "is missing"
    if size != entry.size:
        return f"has {size:,} bytes, not {entry.size:,}"
    if class_name != entry.class_name:
        return f"is of class {class_name}, not {entry.class_name}"
    try:
        return None if md5_of(path) == entry.md5 else "its content has changed"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def classes_of(index: ImageIndex) -> list[str]:
    """The class name of every image."""
    return [index.class_names[label] for label in index.labels]


def sizes_of(index: ImageIndex) -> list[int | None]:
    """Bytes of every image; None: it is missing."""
    sizes = []
    for relative in index.paths:
        try:
            sizes.append((index.root / relative).stat().st_size)
        except OSError:
            sizes.append(None)
    return sizes


def md5_of(path: Path) -> str:
    """MD5 of a file, hexadecimal: it tells damage, not malice."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
