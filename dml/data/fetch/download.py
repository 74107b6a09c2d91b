"""The published files of a data set: what they are, and how one is fetched and proven whole.

A data set that has any lists them in its module as ``FILES: tuple[RemoteFile, ...]``.
"""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from dml.data.progress import byte_bar
from dml.errors import RunError

log = logging.getLogger("dml")

CHUNK = 1 << 16  # bytes read at a time; what a broken connection loses
TIMEOUT = (15, 60)  # seconds to connect, seconds without a byte


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set as its authors published it.

    name: where it lies under the data set's root, posix form; an archive is unpacked beside itself.
    urls: addresses, tried in order; none where all are dead or ask for a form.
    md5, sha256: of the file, hexadecimal; size: in bytes.  None: not known.
    by_hand: where a person gets it when no address works, in words.
    packaging: sets that circulate in several forms name the form; the files of one form suffice.
    """

    name: str
    urls: tuple[str, ...] = ()
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None
    by_hand: str = ""
    packaging: str = ""

    @property
    def checksums(self) -> dict[str, str]:
        """hashlib's name -> hexadecimal digest, of those that are known."""
        values = {"md5": self.md5, "sha256": self.sha256}
        return {kind: value for kind, value in values.items() if value}

    def facts(self) -> str:
        """`1,150,585,339 bytes, md5 97ec...`: what is known of it, for a person who brings it."""
        known = [f"{self.size:,} bytes"] if self.size is not None else []
        known += [f"{kind} {value}" for kind, value in self.checksums.items()]
        return ", ".join(known) or "no checksum is published"


def difference(path: Path, file: RemoteFile) -> str | None:
    """How the file at `path` differs from what was published, or None. Reads all of it."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"has {size:,} bytes, not {file.size:,}"
    wanted = file.checksums
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in wanted}
    if not digests:
        return None
    with byte_bar(f"Checking {path.name}", size) as done, path.open("rb") as stream:
        while block := stream.read(CHUNK):
            for digest in digests.values():
                digest.update(block)
            done(stream.tell())
    for kind, digest in digests.items():
        if digest.hexdigest() != wanted[kind]:
            return f"has {kind} {digest.hexdigest()}, not {wanted[kind]}"
    return None


def fetch(file: RemoteFile, root: Path) -> Path:
    """The file below `root`: as it lies there if it is right, else from the first address that has it.

    It is written to `<name>.part` and renamed once size and checksums are right.  What an interrupted
    download left there is continued, provided a checksum will tell whether the ends fit.

    Raises RunError: a file of that name is another one, no address gives it, the disk is full.
    """
    path = root / file.name
    part = path.with_name(f"{path.name}.part")
    failures = []
    try:
        if path.exists():
            wrong = difference(path, file)
            if wrong is None:
                return path
            raise RunError(
                f"{path} {wrong}: it is damaged or another file.\n"
                "Remove it (or put the right one there) and run the same command again."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent, (file.size or 0) - bytes_of(part))
        for url in file.urls:
            log.info("Fetching %s from %s", file.name, url)
            failure = fetch_from(url, file, part)
            if failure is None:
                part.rename(path)
                return path
            failures.append(f"  {url}: {failure}")
            log.info("  %s", failure)
    except OSError as error:
        raise RunError(
            f"cannot read or write {path} ({error.strerror or error}).\nMake room, or choose another "
            "root=DIR; the same command then goes on where it stopped."
        ) from error
    raise RunError(
        "\n".join([f"{file.name} could not be fetched:", *failures, *by_hand_lines(file, root)])
    )


def by_hand_lines(file: RemoteFile, root: Path) -> list[str]:
    """What a person does to bring a file: where it comes from, where it goes, how to know it."""
    source = [f"  {file.by_hand}"] if file.by_hand else []
    return [f"Put {file.name} at {root / file.name} ({file.facts()})", *source]


def fetch_from(url: str, file: RemoteFile, part: Path) -> str | None:
    """Fetch from one address into `part`; returns why it failed, or None once `part` is the file.

    A broken connection is taken up again as long as each attempt brings bytes.  OSErrors of the disk pass.
    """
    import requests  # here alone: checking what is already there needs no network

    while True:
        before = bytes_of(part) if file.checksums else 0
        if file.size is None or before < file.size:
            try:
                failure = transfer(url, file, part, before)
            except requests.RequestException as error:
                if file.checksums and bytes_of(part) > before:
                    log.info(
                        "  interrupted at %s bytes; going on from there", f"{bytes_of(part):,}"
                    )
                    continue
                failure = f"{type(error).__name__}: {error}"
            if failure:
                return failure
        wrong = difference(part, file)
        if wrong is None:
            return None
        part.unlink()
        if before == 0:
            return f"what it sends {wrong}"
        # An older part may have been of another file: once more, from the start.


def transfer(url: str, file: RemoteFile, part: Path, start: int) -> str | None:
    """One request: append to `part` from byte `start` on; returns why the answer is of no use, or None."""
    import requests

    headers = {"Accept-Encoding": "identity"}  # else sizes and ranges are those of packed data
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if (
            response.status_code == 416 and start
        ):  # there is nothing after `start`: the checksum decides
            return None
        if response.status_code not in (200, 206):
            return f"{response.status_code} {response.reason}"
        continued = response.status_code == 206 and response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {start}-")
        if response.status_code == 206 and not continued:
            return "it sends another part than the one asked for"
        done = start if continued else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else file.size
        if file.size is not None and total != file.size:
            return f"it offers {total:,} bytes, not {file.size:,}"
        with (
            byte_bar(f"Fetching {file.name}", total) as tell,
            part.open("ab" if continued else "wb") as stream,
        ):
            for block in response.iter_content(CHUNK):
                stream.write(block)
                done += len(block)
                tell(done)
                if file.size is not None and done > file.size:
                    break  # the difference in size is reported
    return None


def bytes_of(path: Path) -> int:
    """Size of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def require_space(directory: Path, needed: int) -> None:
    """Raise RunError if the disk of `directory` has fewer than `needed` bytes left."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise RunError(
            f"{directory} has {free:,} bytes left, and {needed:,} are needed.\n"
            "Make room, or choose another root=DIR."
        )
