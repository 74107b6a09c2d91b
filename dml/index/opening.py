"""Open an index, whatever keeps it: a directory, or a server that a directory points to."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from dml.errors import ConfigurationError, Problem, RunError
from dml.index import files
from dml.index.searchable import Searchable
from dml.index.store import Index
from dml.index.vectors import Vectors

TRIES = 5  # a writer may replace the files between the reading of index.json and of those it names


def open_index(path: str | Path, root: str | Path | None = None, verify: bool = True) -> Searchable:
    """Open an index for searching.

    root: the folder of the images, where it has moved since they were indexed.  verify: compare every
    file with its checksum first, about a second for a gigabyte.

    Raises RunError: no index, another format, a damaged file, a server that does not answer.
    ConfigurationError: a package is missing, or `root` is no directory.
    """
    directory = Path(path).expanduser().absolute()
    folder = None if root is None else existing(Path(root))
    for attempt in range(TRIES):
        manifest = files.read_manifest(directory)
        if manifest["search"]["kind"] in ("milvus", "qdrant"):
            from dml.index.servers import open_server

            return open_server(directory, manifest, folder)
        need_faiss()
        try:
            return opened(directory, manifest, folder, verify)
        except RunError:
            if attempt == TRIES - 1 or files.read_manifest(directory) == manifest:
                raise
    raise AssertionError("unreachable")


def open_named(word: str, value: str, root: str | None = None) -> Searchable:
    """`open_index` for a word of a command line.  Raises ConfigurationError: there is no index."""
    if not files.exists(Path(value).expanduser()):
        what = f"holds no {files.FILE}: it is no index. dml-index makes one."
        raise ConfigurationError([Problem(f"{word}={value}", what)])
    return open_index(value, root)


def open_local(word: str, value: str) -> Index:
    """`open_named` for an index in a directory.  Raises ConfigurationError for one in a server."""
    index = open_named(word, value)
    if not isinstance(index, Index):
        what = f"is kept by {index.kind}, which builds and tunes its own index."
        raise ConfigurationError([Problem(f"{word}={value}", what)])
    return index


def opened(directory: Path, manifest: dict[str, Any], root: Path | None, verify: bool) -> Index:
    """The index as index.json describes it.  Raises RunError: a file is gone or damaged."""
    wrong = files.damaged(directory, manifest) if verify else []
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        raise RunError(f"the index {directory} is damaged:\n{lines}\n{files.mend(directory)}")
    try:
        arrays = [
            np.load(directory / segment["vectors"], mmap_mode="r", allow_pickle=False)
            for segment in manifest["segments"]
        ]
        items = [items_of(directory, segment, root) for segment in manifest["segments"]]
        removed = np.empty(0, dtype=np.int64)
        if manifest["removed"] is not None:
            removed = np.load(directory / manifest["removed"], allow_pickle=False)
        faiss_index = None
        if manifest["search"]["file"] is not None:
            from dml.index import faiss_index as ours

            faiss_index = ours.read(
                directory / manifest["search"]["file"], manifest["search"]["parameters"]
            )
        if odd := [a for a in arrays if a.dtype != np.float32 or a.shape[1:] != (manifest["dim"],)]:
            raise ValueError(f"vectors are {odd[0].dtype} {list(odd[0].shape)}")
        vectors = Vectors([np.asarray(array) for array in arrays], manifest["dim"])
        return Index(directory, manifest, vectors, items, removed, faiss_index)
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"the index {directory} cannot be read ({error}).") from error
    except Exception as error:  # checksums can be made to fit anything
        what = f"{type(error).__name__}: {error}"
        raise RunError(
            f"the index {directory} is damaged ({what:.200}).\n{files.mend(directory)}"
        ) from error


def items_of(
    directory: Path, segment: dict[str, Any], root: Path | None
) -> tuple[Path | None, list[str], list[str | None]]:
    """Folder, paths and labels of a segment."""
    content = json.loads((directory / segment["items"]).read_bytes())
    where = None if segment["root"] is None else root or Path(segment["root"])
    paths, labels = content["paths"], content["labels"]
    if not all(isinstance(path, str) for path in paths) or len(labels) != len(paths):
        raise ValueError(f"{segment['items']} does not hold paths and labels")
    if not all(isinstance(label, str | None) for label in labels):
        raise ValueError(f"{segment['items']} holds labels that are no text")
    return where, paths, labels


def existing(root: Path) -> Path:
    """The folder, resolved.  Raises ConfigurationError: there is none."""
    if not root.expanduser().is_dir():
        raise ConfigurationError([Problem(f"root={root}", "is no directory.")])
    return root.expanduser().resolve()


def need_faiss() -> None:
    """Raise ConfigurationError where Faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise ConfigurationError(
            [Problem("dml-index", "searches with Faiss: pip install 'dml[index]'.")]
        )
