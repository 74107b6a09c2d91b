"""Make an index, add to it, remove from it, build it again: each leaves a whole index or the old one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dml.errors import RunError
from dml.index import faiss_index, files
from dml.index.faiss_index import Recipe
from dml.index.store import Index
from dml.index.vectors import Vectors, prepared

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Source:
    """Embedded images that are to be stored.

    root: the folder of the paths, resolved, or None for what is no file.  embeddings: float32 [n, dim].
    """

    root: Path | None
    paths: Sequence[str]
    labels: Sequence[str | None]
    embeddings: np.ndarray


def create(
    directory: Path,
    source: Source,
    similarity: str,
    encoder: dict[str, str] | None,
    recipe: Recipe,
    progress: Progress,
) -> None:
    """Write a new index.  Raises RunError: it cannot be written; nothing of it is left."""
    facts: dict[str, Any] = {}
    vectors = prepared(source.embeddings, similarity)
    manifest = {
        "format": files.FORMAT,
        "similarity": similarity,
        "dim": vectors.shape[1],
        "rows": len(vectors),
        "encoder": encoder,
        "removed": None,
        "files": facts,
        "calibration": None,
        "measured": None,
    }
    try:
        manifest["segments"] = [segment(directory, source, vectors, facts)]
        index = faiss_index.build(
            recipe, Vectors([vectors], vectors.shape[1]), similarity, progress
        )
        manifest["search"] = searching(directory, recipe, index, len(vectors), facts)
        files.commit(directory, manifest)
    except OSError as error:
        remove_files(directory, facts)
        raise unwritten(directory, error) from error
    except BaseException:
        remove_files(directory, facts)
        raise


def append(index: Index, source: Source) -> None:
    """Add images to a local index, without building it again.

    Raises RunError: it cannot be written; the old index is whole.
    """
    facts = dict(index.manifest["files"])
    vectors = prepared(source.embeddings, index.similarity)
    manifest = {**index.manifest, "files": facts, "measured": None}
    try:
        added = segment(index.path, source, vectors, facts)
        manifest["segments"] = [*index.manifest["segments"], added]
        manifest["rows"] = index.rows + len(vectors)
        if index.faiss_index is not None:
            faiss_index.add(index.faiss_index, vectors)
            name = faiss_index.write(index.faiss_index, index.path, facts)
            manifest["search"] = {**index.manifest["search"], "file": name}
        files.commit(index.path, manifest)
    except OSError as error:
        remove_files(
            index.path, {n: f for n, f in facts.items() if n not in index.manifest["files"]}
        )
        raise unwritten(index.path, error, "The index is as it was.") from error


def remove(index: Index, rows: np.ndarray) -> None:
    """Take rows out of a local index: they are never found again, and go at the next rebuild.

    Raises RunError: it cannot be written; the old index is whole.
    """
    facts = dict(index.manifest["files"])
    gone = np.setdiff1d(np.arange(index.rows), np.setdiff1d(index.live_rows(), rows))
    try:
        name = files.write_removed(index.path, gone, facts)
        files.commit(
            index.path, {**index.manifest, "files": facts, "removed": name, "measured": None}
        )
    except OSError as error:
        raise unwritten(index.path, error, "The index is as it was.") from error


def rebuild(index: Index, recipe: Recipe, progress: Progress) -> None:
    """Write the searchable images anew, without the removed ones, with this Faiss index.

    Raises RunError: it cannot be written; the old index is whole.
    """
    facts: dict[str, Any] = {}
    old = index.manifest
    live = index.live_rows()
    try:
        segments = []
        begin = 0
        for segment_before in old["segments"]:
            rows = live[(live >= begin) & (live < begin + segment_before["rows"])]
            begin += segment_before["rows"]
            if len(rows) == 0:
                continue
            root = None if segment_before["root"] is None else Path(segment_before["root"])
            items = index.items(rows)
            source = Source(
                root, [i.path for i in items], [i.label for i in items], index.vectors(rows)
            )
            segments.append(segment(index.path, source, source.embeddings, facts))
        arrays = [np.load(index.path / s["vectors"], mmap_mode="r") for s in segments]
        made = faiss_index.build(recipe, Vectors(arrays, index.dim), index.similarity, progress)
        manifest = {**old, "segments": segments, "removed": None, "rows": len(live), "files": facts}
        manifest["search"] = searching(index.path, recipe, made, len(live), facts)
        files.commit(index.path, {**manifest, "measured": None})
    except OSError as error:
        remove_files(index.path, facts)
        raise unwritten(index.path, error, "The index is as it was.") from error
    except BaseException:
        remove_files(index.path, facts)
        raise


def note(directory: Path, **entries: Any) -> None:
    """Change entries of index.json.  Raises RunError: it cannot be written; it is as it was."""
    manifest = files.read_manifest(directory)
    try:
        files.commit(directory, {**manifest, **entries})
    except OSError as error:
        raise unwritten(directory, error, "The index is as it was.") from error


def segment(
    directory: Path, source: Source, vectors: np.ndarray, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write vectors, paths and labels; what index.json says of them."""
    if not len(source.paths) == len(source.labels) == len(vectors):
        raise ValueError("paths, labels and embeddings differ in number")
    rows, dim = vectors.shape
    return {
        "root": None if source.root is None else str(source.root),
        "rows": rows,
        "vectors": files.write_vectors(directory, iter([vectors]), rows, dim, facts),
        "items": files.write_items(directory, list(source.paths), list(source.labels), facts),
    }


def searching(
    directory: Path, recipe: Recipe, index: Any, count: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write the Faiss index; what index.json says of it.  built_for: rows when it was trained."""
    return {
        "kind": recipe.kind,
        "factory": recipe.factory,
        "parameters": recipe.parameters,
        "refine": recipe.refine,
        "file": faiss_index.write(index, directory, facts),
        "built_for": count,
    }


def remove_files(directory: Path, facts: dict[str, Any]) -> None:
    """Remove files that were written for nothing."""
    for name in facts:
        (directory / name).unlink(missing_ok=True)


def unwritten(directory: Path, error: OSError, rest: str = "Nothing of it was kept.") -> RunError:
    """What to say where writing failed."""
    return RunError(f"cannot write the index {directory} ({error.strerror or error}). {rest}")
