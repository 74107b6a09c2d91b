"""Unpacking archives from elsewhere, as if they were hostile: all of it inside one directory, or nothing."""

import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple, NoReturn

from dml.data.files import visible
from dml.data.progress import byte_bar
from dml.errors import RunError

ENDINGS = (".zip", ".tgz", ".tar.gz", ".tar")
LARGEST_RATIO = 20  # unpacked to packed; images hardly shrink, lists of file names up to tenfold
SLACK = 64 << 20  # bytes that an archive may unpack to whatever its ratio
MOST_MEMBERS = 2_000_000  # iNaturalist-2018 has 461,939
LARGEST_BLOCK = 4 << 20  # bytes read at once; a header of a member has some hundred
ZIP, GZIP = b"PK\x03\x04", b"\x1f\x8b"  # how one begins
BROKEN = (
    EOFError,
    NotImplementedError,  # a way of packing that Python does not know
    gzip.BadGzipFile,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class Member(NamedTuple):
    """A file (its bytes in `content`) or a directory (None) within an archive."""

    name: str
    content: IO[bytes] | None


def extract(archive: Path) -> None:
    """Unpack `archive` beside itself.

    It is unpacked into a directory `.<name>.partial`, removed whatever happens, and what lies at its top
    moved out when all is there.  A directory that exists already is completed, and its files replaced; a
    file at the top that exists already is left as it is.  What macOS adds (`._*`, `__MACOSX`) is left out.

    Raises RunError, having changed nothing: a member that is no plain file or directory, or that would
    lie elsewhere; far more bytes than an archive of images holds; a truncated or encrypted archive; a
    full disk.
    """
    partial = archive.with_name(f".{archive.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        write_members(archive, partial)
        move_in(partial, archive.parent)
    except BROKEN as error:
        raise RunError(
            f"{archive} is truncated or damaged ({error}).\nRemove it and run the same command again."
        ) from error
    except OSError as error:
        raise RunError(
            f"{archive} cannot be unpacked in {archive.parent} ({error.strerror or error}).\n"
            "Make room there, or choose another root=DIR; nothing was left half-unpacked."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_members(archive: Path, directory: Path) -> None:
    """Write what `archive` holds into the empty `directory`."""
    size = archive.stat().st_size
    room = SLACK + LARGEST_RATIO * size
    with byte_bar(f"Unpacking {archive.name}", size) as done, archive.open("rb") as raw:
        read = zip_members if raw.read(len(ZIP)) == ZIP else tar_members
        raw.seek(0)
        for count, member in enumerate(read(raw), 1):
            if count > MOST_MEMBERS:
                raise RunError(
                    f"{archive} has more than {MOST_MEMBERS:,} members. Nothing was unpacked."
                )
            path = place(archive, directory, member.name)
            if not all(visible(part) for part in path.relative_to(directory).parts):
                continue
            if member.content is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                while block := member.content.read(1 << 20):
                    room -= len(block)
                    if room < 0:
                        raise RunError(
                            f"{archive} unpacks to more than {LARGEST_RATIO} times its size, as no "
                            "archive of images does. Nothing was unpacked."
                        )
                    out.write(block)
            done(raw.tell())


def place(archive: Path, directory: Path, name: str) -> Path:
    """Where a member is written.  Raises RunError if that would be outside `directory`."""
    path = PurePosixPath(name)
    elsewhere = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive
    if elsewhere or "\\" in name or "\0" in name:
        raise RunError(
            f"{archive} holds {name!r}, which would be written outside of its directory. "
            "Nothing was unpacked: this is not the published archive."
        )
    return directory / path


def tar_members(raw: IO[bytes]) -> Iterator[Member]:
    """Files and directories of a tar archive, packed or not.  Raises RunError at anything else."""
    packed = raw.read(len(GZIP)) == GZIP
    raw.seek(0)
    stream: Any = InBlocks(gzip.GzipFile(fileobj=raw) if packed else raw)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for info in tar:
            if not (info.isreg() or info.isdir()):
                refuse(info.name, "a link" if info.issym() or info.islnk() else "a device")
            yield Member(info.name, tar.extractfile(info) if info.isreg() else None)
        while tar.fileobj and tar.fileobj.read(1 << 20):
            pass  # tar stops at the first empty block; gzip compares its checksum at the end of all


class InBlocks:
    """A stream of which nobody reads much at once: a header may claim any length, and would fill memory."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile):
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, size: int) -> bytes:
        """The next bytes.  Raises tarfile.ReadError: too many are asked for."""
        if not 0 <= size <= LARGEST_BLOCK:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._stream.read(size)


def zip_members(raw: IO[bytes]) -> Iterator[Member]:
    """Files and directories of a zip archive.  Raises RunError at anything else."""
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                refuse(info.filename, "a link" if kind == stat.S_IFLNK else "a device")
            if info.flag_bits & 1:
                raise RunError(
                    f"{raw.name} is encrypted. Unpack it there yourself, with the password that its "
                    "authors gave you, and run the same command again."
                )
            if info.is_dir():
                yield Member(info.filename, None)
                continue
            with archive.open(info) as content:
                yield Member(info.filename, content)


def refuse(name: str, what: str) -> NoReturn:
    """Raise RunError about a member of a kind that no data set needs."""
    raise RunError(
        f"the archive holds {what}, {name!r}; only files and directories are unpacked. "
        "Nothing was unpacked: this is not the published archive."
    )


def move_in(source: Path, target: Path) -> None:
    """Move what `source` holds into `target`: whole directories where they are new, else file by file."""
    for entry in sorted(source.iterdir()):
        there = target / entry.name
        if not there.exists():
            entry.rename(there)
        elif entry.is_dir():
            merge(entry, there)


def merge(source: Path, target: Path) -> None:
    """Move every file below `source` to its place below `target`, replacing what is there."""
    for folder, _, files in os.walk(source):
        into = target / Path(folder).relative_to(source)
        into.mkdir(parents=True, exist_ok=True)
        for file in files:
            (Path(folder) / file).replace(into / file)
