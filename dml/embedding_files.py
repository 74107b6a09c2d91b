"""Embeddings with their labels: what an encoder made of images, and the files that hold such arrays.

Torch-free, so that a wrong file is reported before anything slow is imported.
"""

import csv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dml import record
from dml.data.index import shortened
from dml.errors import ConfigurationError, Problem

LARGEST_RATIO, SLACK = 20, 1 << 30  # unpacked to packed, and bytes that are fine whatever the ratio
KINDS = (".npz", ".npy", ".parquet")
SIMILARITIES = ("cosine", "dot", "euclidean")  # those of dml.evaluation.scores, which imports torch


@dataclass(frozen=True)
class Embedded:
    """Images, or other items, as vectors.

    embeddings: float32 [n, d], not necessarily normalised.  labels: int64 [n].  ids: integers or strings
    [n], different.  is_query: bool [n]; True is a query only, False is in the gallery only.  None: every
    item is both.  paths: file names [n], where the items are images of a data set.  similarity: how the
    encoder's loss compares them, hence how they are evaluated.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    is_query: np.ndarray | None = None
    paths: np.ndarray | None = None
    similarity: str = "cosine"

    def __len__(self) -> int:
        return len(self.labels)


def save(embedded: Embedded, path: Path) -> Path:
    """Write an .npz of the arrays that `load` reads, aside, then rename."""
    arrays = {name: value for name, value in vars(embedded).items() if value is not None}
    with record.aside(path) as file:
        np.savez(file, **arrays)
    return path


def load(path: Path, labels: Path | None = None) -> Embedded:
    """Read embeddings [n, d] and labels [n] out of a file.

    .npz: arrays `embeddings`, `labels` and, where wanted, `ids`, `is_query`, `paths` and the word
    `similarity`.  .npy: the embeddings; `labels` names a .npy, or a .csv with columns label and, where
    wanted, id and is_query.
    .parquet: columns embedding, label and, where wanted, id, is_query and path; needs pyarrow.
    Labels may be integers or text.  Nothing pickled is read.

    Raises ConfigurationError with all that is wrong with the files.
    """
    where = f"embeddings_file={path}"
    try:
        if path.suffix == ".npz":
            arrays = arrays_of(path)
        elif path.suffix == ".npy":
            arrays = {"embeddings": np.load(path, allow_pickle=False), **labels_of(labels)}
        else:
            arrays = columns_of(path)
    except ConfigurationError:
        raise
    except Exception as error:  # a foreign file can fail in any way; every one means the same
        what = f"cannot be read ({reason(error)})."
        raise ConfigurationError([Problem(where, what)]) from error
    if problems := problems_of(arrays):
        raise ConfigurationError([Problem(where, problem) for problem in problems])
    return Embedded(
        embeddings=arrays["embeddings"].astype(np.float32, copy=False),
        labels=integers(arrays["labels"]),
        ids=arrays.get("ids", np.arange(len(arrays["labels"]))),
        is_query=None if "is_query" not in arrays else arrays["is_query"].astype(bool),
        paths=arrays.get("paths"),
        similarity=str(arrays.get("similarity", "cosine")),
    )


def reason(error: Exception) -> str:
    """Why a file of arrays cannot be read; NumPy would advise to unpickle it."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if "allow_pickle" in text:
        return "it holds Python objects, which could run code, and no plain array"
    if isinstance(error, zipfile.BadZipFile):
        return "it is no .npz, or was cut short"
    return text


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name.  Raises ValueError: it unpacks to far more, as bombs do."""
    with zipfile.ZipFile(path) as archive:
        total, size = sum(item.file_size for item in archive.infolist()), path.stat().st_size
    if total > SLACK + LARGEST_RATIO * size:
        raise ValueError(f"it unpacks from {size:,} to {total:,} bytes")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def labels_of(path: Path | None) -> dict[str, np.ndarray]:
    """Labels, and where they are given ids and roles, from a file of their own."""
    if path is None:
        raise ConfigurationError(
            [Problem("labels", "an .npy holds no labels. Add labels=FILE, a .npy or .csv.")]
        )
    if path.suffix == ".npy":
        return {"labels": np.load(path, allow_pickle=False)}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    if "is_query" in columns:
        roles = np.char.lower(columns["is_query"])
        known = np.isin(roles, ("true", "false", "1", "0"))
        if not known.all():
            odd = shortened(sorted(set(columns["is_query"][~known])))
            what = f"its column is_query holds {odd}. Write true or false."
            raise ConfigurationError([Problem(f"labels={path}", what)])
        columns["is_query"] = np.isin(roles, ("true", "1"))
    return named(columns)


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """The columns of a parquet file."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        what = "needs pyarrow: pip install 'dml[parquet]', or give an .npz."
        raise ConfigurationError([Problem(f"embeddings_file={path}", what)]) from error
    table = parquet.read_table(path)
    columns = {
        name: table.column(name).to_numpy() for name in table.column_names if name != "embedding"
    }
    found = named({n: c.astype(str) if c.dtype == object else c for n, c in columns.items()})
    if "embedding" in table.column_names:
        rows = table.column("embedding").to_pylist()
        lengths = {-1 if row is None else len(row) for row in rows}
        if len(lengths) > 1:
            what = f"its embeddings have different lengths: {shortened(sorted(lengths))}."
            raise ConfigurationError([Problem(f"embeddings_file={path}", what)])
        found["embeddings"] = np.array(rows, dtype=np.float32)
    return found


def named(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of a table under the names of our arrays."""
    names = {"label": "labels", "id": "ids", "is_query": "is_query", "path": "paths"}
    return {ours: columns[column] for column, ours in names.items() if column in columns}


def integers(labels: np.ndarray) -> np.ndarray:
    """Labels as int64; text is numbered in the order of its characters."""
    if labels.dtype.kind in "US":
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return labels.astype(np.int64)


def problems_of(arrays: Mapping[str, Any]) -> list[str]:
    """Arrays that are missing, of the wrong shape or type, or hold what is no number."""
    missing = [name for name in ("embeddings", "labels") if name not in arrays]
    if missing:
        there = f"It has {shortened(sorted(arrays))}." if arrays else "It has none."
        return [f"lacks {' and '.join(missing)}. {there}"]
    embeddings, found = arrays["embeddings"], []
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        return [f"embeddings have shape {list(embeddings.shape)}; expected [items, dimensions]."]
    if embeddings.dtype.kind not in "fiu":
        found.append(f"embeddings are {embeddings.dtype}, not real numbers.")
    elif bad := bad_rows(embeddings):
        found.append(f"embeddings hold NaN or infinity in rows {shortened(bad)}.")
    kinds = {"labels": ("iuUS", "integers or text"), "ids": ("iuUS", "integers or text")}
    kinds |= {"is_query": ("b", "true or false"), "paths": ("US", "text")}
    for name, (kind, expected) in kinds.items():
        if name not in arrays:
            continue
        array = arrays[name]
        if array.shape != embeddings.shape[:1]:
            found.append(
                f"{name} have shape {list(array.shape)} for {len(embeddings)} rows of embeddings."
            )
        elif array.dtype.kind not in kind:
            found.append(f"{name} are {array.dtype}; expected {expected}.")
        elif name == "ids" and len(np.unique(array)) < len(array):
            found.append("ids must all be different.")
        elif name == "is_query" and (array.all() or not array.any()):
            found.append("is_query needs both queries (true) and gallery (false).")
    if (named_so := str(arrays.get("similarity", "cosine"))) not in SIMILARITIES:
        found.append(f"similarity is {named_so!r}, none of {', '.join(SIMILARITIES)}.")
    return found


def bad_rows(embeddings: np.ndarray) -> list[int]:
    """Rows with a number that float32 does not hold, looked at piece by piece."""
    step = max(1, (1 << 22) // embeddings.shape[1])
    with np.errstate(over="ignore"):
        return [
            start + int(row)
            for start in range(0, len(embeddings), step)
            for row in np.flatnonzero(
                ~np.isfinite(embeddings[start : start + step].astype(np.float32)).all(1)
            )
        ]
