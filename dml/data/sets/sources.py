"""What published data sets have in common: where they lie, and proofs of what is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dml.data.fetch.archives import ENDINGS
from dml.data.fetch.download import RemoteFile
from dml.data.files import missing_files, missing_part, subdirectories
from dml.data.index import shortened
from dml.errors import ConfigurationError, Problem


@dataclass(frozen=True)
class Source:
    """A published data set at the place a user names.  Its methods raise ConfigurationError.

    root: data.root.  name: data=name.  title: as people call it.  files: what it is published as.
    """

    root: str | None
    name: str
    title: str
    files: Sequence[RemoteFile]

    @property
    def prepare(self) -> str:
        """The command that downloads, unpacks and checks it."""
        return f"dml-data prepare={self.name} root={self.root or 'DIR'}"

    def refused(self, what: str) -> ConfigurationError:
        """The error that says what is wrong with the data at `root`, and the mend."""
        where = f"data.root={self.root}" if self.root else "data.root"
        return ConfigurationError([Problem(where, what)])

    def locate(
        self, markers: Mapping[str, str], mistaken: Callable[[Path], str | None]
    ) -> tuple[Path, str]:
        """The data set's directory, which is `root` or one below it, and the layout it has.

        markers: layout -> a path within that directory that tells it; the first that exists counts.
        mistaken: what a directory holds instead, in words with the mend, or None.
        """
        if not self.root:
            raise self.refused(f"has no value. Add data.root=DIR, or get the data: {self.prepare}")
        top = Path(self.root).expanduser().absolute()
        if not top.is_dir():
            what = "is a file." if top.exists() else f"there is no {missing_part(top)}."
            raise self.refused(f"{what}\nAdd data.root=DIR, or get the data: {self.prepare}")
        places = [top, *(top / below for below in subdirectories(top))]
        for layout, marker in markers.items():
            for place in places:
                if (place / marker).exists():
                    return place, layout
        packed = [f.name for f in self.files if f.name.endswith(ENDINGS)]
        packed = [name for name in packed if (top / name).is_file()]
        if packed:
            raise self.refused(f"holds {', '.join(packed)}, not unpacked. Run {self.prepare}")
        for told in map(mistaken, places):
            if told is not None:
                raise self.refused(told)
        expected = " or ".join(markers.values())
        raise self.refused(
            f"holds no {self.title}: there is no {expected}, here or one directory below.\n"
            f"Get the data: {self.prepare}"
        )

    def rows(self, file: Path, columns: int, head: Sequence[str] = ()) -> list[list[str]]:
        """Lines of a list below its `head` lines, as cells parted by blanks; the last may hold some.

        Blank lines are left out; blanks in `head` may be more than one.
        """
        try:
            lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise self.refused(
                f"cannot read {file} ({reason}).\nUnpack it again: {self.prepare}"
            ) from error
        rows = [line.split(maxsplit=columns - 1) for line in lines[len(head) :]]
        wrong = [
            line for line, row in zip(lines[len(head) :], rows, strict=True) if len(row) != columns
        ]
        wrong += [f for f, h in zip(lines, head, strict=False) if f.split() != h.split()]
        if wrong or len(lines) < len(head):
            what = f"{wrong[0]!r}" if wrong else "its end"
            raise self.refused(
                f"{file} is damaged or another list: unexpected is {what}.\n"
                f"Unpack it again: {self.prepare}"
            )
        return rows

    def numbers(self, file: Path, cells: Sequence[str]) -> np.ndarray:
        """Cells of a list as int64."""
        try:
            return np.array(cells).astype(np.int64)
        except (ValueError, OverflowError) as error:
            raise self.refused(
                f"{file} is damaged: {error}.\nUnpack it again: {self.prepare}"
            ) from error

    def require_counts(
        self,
        labels: np.ndarray,
        parts: Mapping[str, np.ndarray],
        counts: Mapping[str, tuple[int, int]],
    ) -> None:
        """Refuse what has not its published numbers of images and classes.

        labels: int64 [n].  parts: name -> positions.  counts: name -> (images, classes).
        """
        found = {name: (len(p), len(np.unique(labels[p]))) for name, p in parts.items()}
        if found != dict(counts):
            raise self.refused(
                f"is not {self.title} as published: its lists have {counted(found)},\n"
                f"and should have {counted(counts)}. Get the data again: {self.prepare}"
            )

    def require_files(self, directory: Path, paths: Sequence[str]) -> None:
        """Refuse a data set of whose images some are missing, naming the first."""
        missing = missing_files(directory, paths)
        if missing:
            names = shortened([paths[position] for position in missing], 3)
            raise self.refused(
                f"{len(missing):,} of {len(paths):,} images are missing from {directory}: {names}.\n"
                f"It was unpacked in part. Unpack it again: {self.prepare}"
            )


def counted(counts: Mapping[str, tuple[int, int]]) -> str:
    """`train 5,864 images of 100 classes, test ...`."""
    return ", ".join(f"{name} {n:,} images of {c:,} classes" for name, (n, c) in counts.items())
