"""The files of an index directory: index.json, which names every other file and its checksum.

A file is never changed in place. New ones are written beside the old, index.json is replaced, and only
then are those that nothing names removed: whoever reads, and whatever happens, there is a whole index.
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dml.errors import RunError
from dml.record import aside, write_json

FORMAT = 1
FILE = "index.json"
LOCK = ".lock"
PARTIAL = "partial"
UNREADABLE = "unreadable.csv"
PREFIXES = ("vectors-", "items-", "removed-", "faiss-")  # of the files that are ours to remove
KEYS = {
    "format": int,
    "similarity": str,
    "dim": int,
    "rows": int,
    "encoder": (dict, type(None)),
    "segments": list,
    "removed": (str, type(None)),
    "search": dict,
    "files": dict,
    "calibration": (dict, type(None)),
    "measured": (dict, type(None)),
}

SEARCH = {"kind": str, "file": (str, type(None)), "parameters": str, "refine": int}


def exists(directory: Path) -> bool:
    """Whether there is an index."""
    return (directory / FILE).is_file()


def read_manifest(directory: Path) -> dict[str, Any]:
    """index.json.  Raises RunError: none, of another format, or not as it was written."""
    path = directory / FILE
    if not path.is_file():
        raise RunError(f"{directory} holds no {FILE}: it is no index. dml-index makes one.")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is no JSON ({error}). {mend(directory)}") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise RunError(f"{path} is no index of dml-index.")
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{path} has format {manifest['format']}, and this version reads format {FORMAT}. "
            "Build the index again with this version."
        )
    if manifest.pop("checksum", None) != digest_of(manifest):
        raise RunError(f"{path} is not as dml-index wrote it. {mend(directory)}")
    wrong = [name for name, kind in KEYS.items() if not isinstance(manifest.get(name), kind)]
    wrong += [] if wrong else inner_problems(manifest)
    if wrong:
        raise RunError(f"{path} lacks or garbles {', '.join(wrong)}. {mend(directory)}")
    return manifest


def inner_problems(manifest: Mapping[str, Any]) -> list[str]:
    """Entries further down that are missing, of another kind, or that name a file of another directory."""
    found = []
    search, rows, dim = manifest["search"], manifest["rows"], manifest["dim"]
    served = search.get("kind") in ("milvus", "qdrant")  # whose own server knows the rest
    for name, kind in SEARCH.items():
        if not (served and name not in ("kind", "file")) and not isinstance(search.get(name), kind):
            found.append(f"search.{name}")
    if isinstance(rows, bool) or isinstance(dim, bool) or rows < 0 or dim < 1:
        found.append("rows or dim")
    if manifest["similarity"] not in ("cosine", "dot", "euclidean"):
        found.append("similarity")
    for segment in manifest["segments"]:
        if not isinstance(segment, dict) or not isinstance(segment.get("root"), str | None):
            return [*found, "segments"]
        if not all(isinstance(segment.get(part), str) for part in ("vectors", "items")):
            return [*found, "segments"]
    if found:
        return found
    for name in named(manifest):
        facts = manifest["files"].get(name)
        if not name.startswith(PREFIXES) or "/" in name or "\\" in name or "\0" in name:
            found.append(f"the file name {name!r:.80}")
        elif not isinstance(facts, dict) or not {"bytes", "sha256"} <= facts.keys():
            found.append(f"files.{name}")
    return found


def commit(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Replace index.json, then remove the files that it no longer names.

    Raises OSError: not written; the old index is whole.
    """
    content = {name: manifest[name] for name in KEYS}
    content["files"] = {name: content["files"][name] for name in sorted(named(content))}
    write_json({**content, "checksum": digest_of(content)}, directory / FILE)
    for path in directory.iterdir():
        if path.name.startswith(PREFIXES) and path.name not in content["files"]:
            path.unlink()


def named(manifest: Mapping[str, Any]) -> set[str]:
    """Names of the files that make up the index."""
    names = {segment[part] for segment in manifest["segments"] for part in ("vectors", "items")}
    return names | ({manifest["removed"], manifest["search"].get("file")} - {None})


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of what index.json says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def mend(directory: Path) -> str:
    """What to do about a damaged index."""
    return f"Build it again, or bring {directory} back from a copy."


def fresh(prefix: str, suffix: str) -> str:
    """A file name that is not taken."""
    return f"{prefix}{secrets.token_hex(6)}{suffix}"


class Written:
    """A binary file that counts and hashes what goes into it."""

    def __init__(self, file: BinaryIO):
        self.file, self.bytes, self.hash = file, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write bytes, an array or a memory view."""
        view = memoryview(data).cast("B")
        self.file.write(view)
        self.hash.update(view)
        self.bytes += len(view)
        return len(view)

    def facts(self) -> dict[str, Any]:
        """What index.json records of the file."""
        return {"bytes": self.bytes, "sha256": self.hash.hexdigest()}


@contextmanager
def new_file(directory: Path, name: str, facts: dict[str, Any]) -> Iterator[Written]:
    """A file that takes its name once it is written; its size and checksum go into `facts[name]`."""
    with aside(directory / name) as file:
        written = Written(file)
        yield written
    facts[name] = written.facts()


def write_vectors(
    directory: Path, parts: Iterator[np.ndarray], rows: int, dim: int, facts: dict[str, Any]
) -> str:
    """float32 [rows, dim] as an .npy, part by part; returns its name."""
    name = fresh("vectors-", ".npy")
    with new_file(directory, name, facts) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        count = 0
        for part in parts:
            count += len(part)
            file.write(np.ascontiguousarray(part, dtype="<f4"))
        if count != rows:
            raise ValueError(f"{count} vectors for {rows} rows")
    return name


def write_items(
    directory: Path, paths: list[str], labels: list[str | None], facts: dict[str, Any]
) -> str:
    """Paths and labels; names that are no valid text survive as escapes."""
    name = fresh("items-", ".json")
    with new_file(directory, name, facts) as file:
        file.write(json.dumps({"paths": paths, "labels": labels}).encode("ascii"))
    return name


def write_removed(directory: Path, rows: np.ndarray, facts: dict[str, Any]) -> str:
    """Row numbers, ascending."""
    name = fresh("removed-", ".npy")
    with new_file(directory, name, facts) as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": (len(rows),)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(rows, dtype="<i8"))
    return name


def damaged(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files that index.json names, one line each."""
    found = []
    for name, facts in manifest["files"].items():
        path = directory / name
        try:
            size = path.stat().st_size
            if size != facts["bytes"]:
                found.append(f"{name} has {size:,} bytes, not the {facts['bytes']:,} it was given")
                continue
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != facts["sha256"]:
                found.append(f"{name} is not as it was written (its SHA-256 differs)")
        except FileNotFoundError:
            found.append(f"{name} is gone")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let one process at a time write to an index.  Raises RunError: another one does."""
    handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another dml-index is writing to {directory}. Wait until it is done."
            ) from error
        yield
    finally:
        os.close(handle)
