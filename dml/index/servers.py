"""Collections that outgrow one machine: the same index, its vectors and names in Milvus or Qdrant.

The directory keeps index.json alone: the encoder's fingerprint, where the server is, the threshold.  A
server proposes candidates together with their vectors, and scores are computed here, as for every index.
"""

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dml.data.index import shortened
from dml.errors import ConfigurationError, Problem, RunError
from dml.index import files
from dml.index.hits import Item
from dml.index.searchable import Searchable
from dml.index.store import inside
from dml.index.vectors import prepared, scores
from dml.index.writing import Source, note, unwritten

KINDS = ("milvus", "qdrant")
BATCH = 500  # images a request
PACKAGES = {"milvus": "pymilvus", "qdrant": "qdrant_client"}


@dataclass(frozen=True)
class Stored:
    """An image as a server keeps it; label None: none; vector None: not asked for."""

    row: int
    root: str
    path: str
    label: str | None
    vector: np.ndarray | None = None


class Client(Protocol):
    """What is asked of a server.  Every method may raise whatever its client raises."""

    def create(self, dim: int, similarity: str) -> None:
        """Make the collection."""
        ...

    def insert(self, images: Sequence[Stored]) -> None:
        """Add images with their vectors."""
        ...

    def delete(self, rows: Sequence[int]) -> None:
        """Remove images."""
        ...

    def search(self, vectors: np.ndarray, k: int, where: str | None) -> list[list[Stored]]:
        """Candidates of each query, with vectors."""
        ...

    def get(self, rows: Sequence[int]) -> list[Stored]:
        """Images by row, with vectors, in any order; those that are not there are left out."""
        ...

    def everything(self) -> Iterator[Stored]:
        """All images, without vectors."""
        ...

    def find(self, root: str, path: str) -> int | None:
        """The row of a path."""
        ...

    def count(self) -> int:
        """How many images there are."""
        ...

    def exists(self) -> bool:
        """Whether the collection is there."""
        ...

    def drop(self) -> None:
        """Remove the collection."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def client(kind: str, address: str, collection: str) -> Client:
    """A client of a server, or of an embedded one in a file or directory.

    address: http://host:port, or a local path: a file that ends in .db for Milvus Lite, a directory for
    Qdrant.  Raises ConfigurationError: the package is missing; RunError: the server does not answer.
    """
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        what = f"needs the package {PACKAGES[kind]}: pip install 'dml[{kind}]'."
        raise ConfigurationError([Problem(f"store={kind}", what)])
    with told(kind, address):
        if kind == "milvus":
            from dml.index.milvus import Milvus

            return Milvus(address, collection)
        from dml.index.qdrant import Qdrant

        return Qdrant(address, collection)


class told:
    """Whatever a client raises, as a RunError that names the server."""

    def __init__(self, kind: str, address: str):
        self.kind, self.address = kind, address

    def __enter__(self) -> None:
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it raises

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        known = (RunError, ConfigurationError, ValueError, KeyboardInterrupt, SystemExit)
        if error is None or (
            isinstance(error, known) and type(error).__module__ != "pymilvus.exceptions"
        ):
            return
        said = str(getattr(error, "message", "") or error).strip()  # Milvus wraps its own
        reason = next(iter(said.splitlines()), type(error).__name__)
        raise RunError(f"{self.kind} at {self.address} fails: {reason}") from error


class ServerIndex(Searchable):
    """An index whose images a server keeps.  Methods may be called from several threads at once."""

    def __init__(
        self, directory: Path, manifest: Mapping[str, Any], client: Client, root: Path | None
    ):
        super().__init__(directory, manifest)
        self.client, self._root = client, root
        search = manifest["search"]
        self.address: str = search["address"]
        # Classes that were ever added; one whose images have all been removed stays, and finds nothing.
        self.labels = list(search["labels"])

    rows_removed = 0  # a server frees what is removed

    def __len__(self) -> int:
        with self._told():
            return self.client.count()

    def _told(self) -> told:
        return told(self.kind, self.address)

    def search(
        self,
        embeddings: np.ndarray,
        k: int,
        where: str | None = None,
        exclude: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Searchable.search`."""
        queries = self.checked_queries(embeddings)
        if k < 1:
            raise ValueError(f"k={k} is below 1")
        if where is not None and where not in self.labels:
            raise ValueError(f"no class {where!r}. Classes: {shortened(self.labels, 8)}")
        out = np.full(len(queries), -1) if exclude is None else np.asarray(exclude)
        near = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        if not len(queries):
            return near, rows
        with self._told():
            answers = self.client.search(queries, k + int((out >= 0).any()), where)
        for number, found in enumerate(answers):
            kept = [image for image in found if image.row != out[number]]
            if not kept:
                continue
            vectors = np.stack([image.vector for image in kept if image.vector is not None])
            score = scores(queries[number : number + 1], vectors[None], self.similarity)[0]
            numbers = np.array([image.row for image in kept])
            order = np.lexsort((numbers, -score))[:k]
            near[number, : len(order)] = score[order]
            rows[number, : len(order)] = numbers[order]
        return near, rows

    def _get(self, rows: Sequence[int] | np.ndarray) -> list[Stored]:
        wanted = [int(row) for row in rows]
        with self._told():
            found = {image.row: image for image in self.client.get(wanted)} if wanted else {}
        for row in wanted:
            if row not in found:
                raise ValueError(f"there is no image with the number {row}")
        return [found[row] for row in wanted]

    def items(self, rows: Sequence[int] | np.ndarray) -> list[Item]:
        """See `Searchable.items`."""
        return [
            Item(image.row, image.path, image.label, self.file_of(image.root, image.path))
            for image in self._get(rows)
        ]

    def file_of(self, root: str, path: str) -> Path | None:
        """The file of an image, if it is there and within its folder."""
        return inside(self._folder(root), path)

    def _folder(self, root: str) -> Path | None:
        return self._root or (Path(root) if root else None)

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `Searchable.vectors`."""
        found = [image.vector for image in self._get(rows) if image.vector is not None]
        return np.stack(found) if found else np.empty((0, self.dim), np.float32)

    def row_of(self, file: Path) -> int | None:
        """See `Searchable.row_of`."""
        file = file.resolve()
        for root in self.manifest["search"]["roots"]:
            folder = self._folder(root)
            if folder is not None and file.is_relative_to(folder):
                with self._told():
                    row = self.client.find(root, file.relative_to(folder).as_posix())
                if row is not None:
                    return row
        return None

    def everything(self) -> Iterator[Stored]:
        """All images, without vectors."""
        with self._told():
            yield from self.client.everything()

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


def open_server(directory: Path, manifest: Mapping[str, Any], root: Path | None) -> ServerIndex:
    """Open an index that a server keeps.  Raises RunError: no answer, or the collection is gone."""
    search = manifest["search"]
    found = client(search["kind"], search["address"], search["collection"])
    with told(search["kind"], search["address"]):
        there = found.exists()
    if not there:
        raise RunError(
            f"{search['kind']} at {search['address']} has no collection {search['collection']}: it was "
            f"dropped, or the address leads elsewhere. {files.mend(directory)}"
        )
    return ServerIndex(directory, manifest, found, root)


def create(
    directory: Path,
    source: Source,
    similarity: str,
    encoder: dict[str, str] | None,
    server: dict[str, str],
    progress: Callable[[float], None],
) -> None:
    """Make a collection and the directory that points to it.  server: kind, address, collection.

    Raises RunError: the server fails, or has such a collection; nothing of the new one is left.
    """
    found = client(**server)
    with told(server["kind"], server["address"]):
        if found.exists():
            raise RunError(
                f"{server['kind']} at {server['address']} has a collection {server['collection']} "
                "already. Give another name: collection=..."
            )
        try:
            found.create(source.embeddings.shape[1], similarity)
            insert(found, source, similarity, 0, progress)
            manifest = {
                "format": files.FORMAT,
                "similarity": similarity,
                "dim": source.embeddings.shape[1],
                "rows": len(source.paths),
                "encoder": encoder,
                "segments": [],
                "removed": None,
                "search": {**server, "file": None, **extent({}, source)},
                "files": {},
                "calibration": None,
                "measured": None,
            }
            files.commit(directory, manifest)
        except BaseException as error:
            found.drop()
            if isinstance(error, OSError):
                raise unwritten(directory, error) from error
            raise
        finally:
            found.close()


def append(index: ServerIndex, source: Source, progress: Callable[[float], None]) -> None:
    """Add images.  Rows are never given twice: the next number is kept in index.json.

    A command that is stopped may have added some; the numbers it took are overwritten by the next.
    """
    begin = index.manifest["rows"]
    with told(index.kind, index.address):
        insert(index.client, source, index.similarity, begin, progress)
    search = {**index.manifest["search"], **extent(index.manifest["search"], source)}
    note(index.path, rows=begin + len(source.paths), search=search)


def remove(index: ServerIndex, rows: Sequence[int]) -> None:
    """Take images out."""
    with told(index.kind, index.address):
        for start in range(0, len(rows), BATCH):
            index.client.delete([int(row) for row in rows[start : start + BATCH]])


def insert(
    client: Client, source: Source, similarity: str, first: int, progress: Callable[[float], None]
) -> None:
    """Send images, a request for each few hundred.  Raises RunError: a name no server takes."""
    vectors = prepared(source.embeddings, similarity)
    root = "" if source.root is None else str(source.root)
    for path in source.paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise RunError(
                f"{path!a} is no text in UTF-8, and a server keeps no other names. Rename the file, or "
                "keep the index in a directory of its own (without store=)."
            ) from error
    for start in range(0, len(vectors), BATCH):
        part = range(start, min(start + BATCH, len(vectors)))
        client.insert(
            [Stored(first + i, root, source.paths[i], source.labels[i], vectors[i]) for i in part]
        )
        progress(part.stop / len(vectors))


def extent(before: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Classes and folders, those of new images added."""
    labels = {*before.get("labels", ()), *(label for label in source.labels if label is not None)}
    root = "" if source.root is None else str(source.root)
    return {"labels": sorted(labels), "roots": sorted({*before.get("roots", ()), root})}


def as_text(label: str | None) -> str:
    """A label for servers without nulls: JSON, so that none and "null" differ."""
    return json.dumps(label)


def from_text(text: str) -> str | None:
    """The label that `as_text` wrote."""
    return json.loads(text)
