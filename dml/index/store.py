"""An opened index: its images, and the search among them."""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dml.data.index import shortened
from dml.index.faiss_index import Recipe
from dml.index.hits import Item
from dml.index.searchable import Searchable
from dml.index.vectors import GATHER, Vectors, exact_candidates, scores

SPARE = 8  # candidates beyond k, so that rounding in Faiss loses none at the end of the list
WIDEN = 4  # how many times deeper to look where removed images took up the list


class Index(Searchable):
    """Images on disk, searchable by embedding.

    Nothing changes after opening: every method may be called from several threads at once.  Scores are
    exact for every kind of index: an approximate one only proposes candidates, which are compared again
    by their stored vectors.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Mapping[str, Any],
        vectors: Vectors,
        items: Sequence[tuple[Path | None, Sequence[str], Sequence[str | None]]],
        removed: np.ndarray,
        faiss_index: Any,
    ):
        super().__init__(directory, manifest)
        self.faiss_index, self._vectors = faiss_index, vectors
        self.refine: int = manifest["search"]["refine"]
        self._roots = [root for root, _, _ in items]
        self._segment = np.repeat(np.arange(len(items)), [len(paths) for _, paths, _ in items])
        self._paths = [path for _, paths, _ in items for path in paths]
        labels = [label for _, _, given in items for label in given]
        self._alive = np.ones(len(self._paths), dtype=bool)
        self._alive[removed] = False
        self._class_names = sorted({label for label in labels if label is not None})
        number = {name: code for code, name in enumerate(self._class_names)}
        self._codes = np.array(
            [-1 if label is None else number[label] for label in labels], dtype=np.int64
        )
        self.labels = [
            self._class_names[code] for code in np.unique(self._live_codes()) if code >= 0
        ]

    def __len__(self) -> int:
        return int(self._alive.sum())

    @property
    def rows(self) -> int:
        """Number of rows, those of removed images included."""
        return len(self._alive)

    @property
    def roots(self) -> list[Path | None]:
        """The folders that the images lie in, one for each time some were added."""
        return self._roots

    @property
    def rows_removed(self) -> int:
        """Rows of images that were removed and are still stored."""
        return self.rows - len(self)

    @property
    def has_files(self) -> bool:
        """Whether its images are files, and not vectors from elsewhere."""
        return any(root is not None for root in self._roots)

    def labels_of(self, rows: np.ndarray) -> list[str | None]:
        """The class of each row."""
        return [None if code < 0 else self._class_names[code] for code in self._codes[rows]]

    def contradictions(self) -> list[str]:
        """Numbers that do not fit together, one line each."""
        counts = {
            "index.json": self.manifest["rows"],
            "paths": len(self._paths),
            "labels": len(self._codes),
            "vectors": len(self._vectors),
        }
        if self.faiss_index is not None:
            counts["the Faiss index"] = self.faiss_index.ntotal
        if len(set(counts.values())) > 1:
            return [f"  {name}: {count:,} rows" for name, count in counts.items()]
        return []

    def live_rows(self) -> np.ndarray:
        """Rows of the searchable images, ascending, int64."""
        return np.flatnonzero(self._alive)

    def _live_codes(self) -> np.ndarray:
        return self._codes[self._alive]

    def searched_with(self, faiss_index: Any, recipe: Recipe, parameters: str) -> "Index":
        """The same images searched by another Faiss index over all rows, for trying one out."""
        trial = copy(self)
        told = {"kind": recipe.kind, "factory": recipe.factory, "parameters": parameters}
        trial.manifest = {**self.manifest, "search": {**self.manifest["search"], **told}}
        trial.kind, trial.refine, trial.faiss_index = recipe.kind, recipe.refine, faiss_index
        return trial

    @cached_property
    def _rows(self) -> dict[tuple[Path | None, str], int]:
        """Folder and path -> row, of searchable images."""
        return {
            (self._roots[self._segment[row]], self._paths[row]): int(row)
            for row in self.live_rows()
        }

    # -- images

    def item(self, row: int) -> Item:
        """The image of a row.  Raises ValueError: no such row, or a removed image."""
        if not 0 <= row < self.rows or not self._alive[row]:
            raise ValueError(f"there is no image with the number {row}")
        code = int(self._codes[row])
        root, path = self._roots[self._segment[row]], self._paths[row]
        label = None if code < 0 else self._class_names[code]
        return Item(int(row), path, label, inside(root, path))

    def items(self, rows: Sequence[int] | np.ndarray) -> list[Item]:
        """The images of rows.  Raises ValueError: no such row, or a removed image."""
        return [self.item(int(row)) for row in rows]

    def path_of(self, row: int) -> str:
        """The path of a row, relative to its folder; removed images still have one."""
        return self._paths[row]

    def row_of(self, file: Path) -> int | None:
        """The row of an indexed file, or None."""
        file = file.resolve()
        for root in dict.fromkeys(self._roots):
            if root is not None and file.is_relative_to(root):
                row = self._rows.get((root, file.relative_to(root).as_posix()))
                if row is not None:
                    return row
        return None

    def known(self, root: Path | None) -> set[str]:
        """Paths of the searchable images below a folder that was indexed."""
        return {path for where, path in self._rows if where == root}

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Stored vectors, float32 [n, dim]; of length 1 where the similarity is a cosine."""
        return np.array(self._vectors.take(np.asarray(rows, dtype=np.int64)))

    def all_vectors(self) -> Vectors:
        """The stored vectors, those of removed images included."""
        return self._vectors

    # -- search

    def search(
        self,
        embeddings: np.ndarray,
        k: int,
        where: str | None = None,
        exclude: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest images of each query: scores float32 [q, k], best first, and rows int64 [q, k].

        embeddings: [q, dim].  where: the only class to search.  exclude: int64 [q], a row to leave out of
        each query's results, or -1.  Where there are fewer than k: score -inf, row -1.

        Raises ValueError: another dimension, NaN or infinity, k below 1, an unknown class.
        """
        queries = self.checked_queries(embeddings)
        if k < 1:
            raise ValueError(f"k={k} is below 1")
        out = np.full(len(queries), -1) if exclude is None else np.asarray(exclude, dtype=np.int64)
        rows = None
        if where is not None:
            if where not in self.labels:
                raise ValueError(f"no class {where!r}. Classes: {shortened(self.labels, 8)}")
            code = self._class_names.index(where)
            rows = np.flatnonzero(self._alive & (self._codes == code))
        found = (np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1))
        step = max(1, GATHER // (self.dim * (k + SPARE) * self.refine))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            near = self._nearest(queries[part], k, rows, out[part])
            for whole, piece in zip(found, near, strict=True):
                whole[part, : piece.shape[1]] = piece
        return found

    def _nearest(
        self, queries: np.ndarray, k: int, rows: np.ndarray | None, out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows), [q, <= k] both, padded with -inf and -1."""
        total = self.rows if rows is None else len(rows)
        dead = 0 if rows is not None else self.rows - len(self)
        wanted = k + SPARE + int((out >= 0).any())
        # As if the removed ones were spread evenly; where they are not, the list is widened below.
        wanted = -(-wanted * total // max(total - dead, 1))
        fetch = min(total, wanted * (self.refine if rows is None else 1))
        found = np.full((len(queries), k), -1, dtype=np.int64)
        near = np.full((len(queries), k), -np.inf, dtype=np.float32)
        pending = np.arange(len(queries))
        while len(pending) and fetch:
            items = self._candidates(queries[pending], fetch, rows)
            usable = (items >= 0) & self._alive[items] & (items != out[pending, None])
            short = (usable.sum(1) < k) & (items >= 0).all(1) & (fetch < total)
            done = pending[~short]
            self._rank(queries, done, items[~short], usable[~short], near, found)
            pending, fetch = pending[short], min(total, fetch * WIDEN)
        return near, found

    def _candidates(self, queries: np.ndarray, count: int, rows: np.ndarray | None) -> np.ndarray:
        """int64 [q, count], in any order; -1: no more."""
        if rows is not None or self.faiss_index is None:
            return exact_candidates(queries, self._vectors, self.similarity, count, rows)
        return self.faiss_index.search(queries, count)[1]

    def _rank(
        self,
        queries: np.ndarray,
        which: np.ndarray,
        items: np.ndarray,
        usable: np.ndarray,
        near: np.ndarray,
        found: np.ndarray,
    ) -> None:
        """Score the candidates of the queries `which` and keep the best; equal scores by row."""
        step = max(1, GATHER // (self.dim * items.shape[1]))
        for start in range(0, len(which), step):
            part = slice(start, start + step)
            rows = np.where(usable[part], items[part], 0)
            vectors = self._vectors.take(rows.ravel()).reshape(*rows.shape, self.dim)
            score = scores(queries[which[part]], vectors, self.similarity)
            score[~usable[part]] = -np.inf
            rows[~usable[part]] = -1
            order = np.lexsort((rows, -score), axis=1)[:, : near.shape[1]]
            width = order.shape[1]
            near[which[part], :width] = np.take_along_axis(score, order, axis=1)
            found[which[part], :width] = np.take_along_axis(rows, order, axis=1)

    def close(self) -> None:
        """Let go of the files and of what Faiss holds."""
        self._vectors, self.faiss_index = Vectors([], self.dim), None


def inside(root: Path | None, path: str) -> Path | None:
    """The file `path` below `root`, or None: no such file, or a link that leads outside."""
    if root is None:
        return None
    try:
        file = (root / path).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long
        return None
    return file if file.is_relative_to(root) and file.is_file() else None
