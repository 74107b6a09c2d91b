"""What every opened index can do, wherever its vectors are kept."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dml.errors import RunError
from dml.index.hits import Calibration, Hit, Item
from dml.index.vectors import prepared


class Searchable(ABC):
    """An opened index: the directory with its index.json, and the search that subclasses implement.

    similarity: cosine | dot | euclidean.  kind: flat | hnsw | ivf_pq | a Faiss factory string | milvus |
    qdrant.  labels: the classes of searchable images.  encoder_fingerprint: None for embeddings from
    elsewhere.
    """

    labels: list[str]

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self.path, self.manifest = directory, manifest
        self.dim: int = manifest["dim"]
        self.similarity: str = manifest["similarity"]
        self.kind: str = manifest["search"]["kind"]
        self.calibration = calibration_of(manifest)
        encoder = manifest["encoder"] or {}
        self.encoder_fingerprint: str | None = encoder.get("fingerprint")
        self.encoder_path: str | None = encoder.get("path")

    @abstractmethod
    def __len__(self) -> int:
        """Number of searchable images."""

    @abstractmethod
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

    @abstractmethod
    def items(self, rows: Sequence[int] | np.ndarray) -> list[Item]:
        """The images of rows.  Raises ValueError: no such row, or a removed image."""

    @abstractmethod
    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Stored vectors, float32 [n, dim]; of length 1 where the similarity is a cosine."""

    @abstractmethod
    def row_of(self, file: Path) -> int | None:
        """The row of an indexed file, or None."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""

    def check_encoder(self, encoder: Any) -> None:
        """Raise RunError if the index was built by another encoder, or by none."""
        if self.encoder_fingerprint is None:
            raise RunError(
                f"{self.path} holds embeddings from elsewhere; which encoder made them is not recorded. "
                "Search it by embeddings: query=FILE.npy."
            )
        if encoder.fingerprint != self.encoder_fingerprint:
            raise RunError(
                f"{self.path} was built by another encoder: fingerprint {self.encoder_fingerprint[:12]}, "
                f"and this one has {encoder.fingerprint[:12]}. Embeddings of two encoders do not compare. "
                f"Use the bundle it was built with ({self.encoder_path}), or build the index again."
            )

    def hits(
        self,
        embeddings: np.ndarray,
        k: int,
        where: str | None = None,
        exclude: np.ndarray | None = None,
    ) -> list[list[Hit]]:
        """`search` with the images and whether each is the same thing as its query."""
        return self.as_hits(*self.search(embeddings, k, where, exclude))

    def as_hits(self, found: np.ndarray, rows: np.ndarray) -> list[list[Hit]]:
        """Scores and rows of a search, [q, k] both, as hits."""
        threshold = None if self.calibration is None else self.calibration.threshold
        answers = []
        for near, numbers in zip(found, rows, strict=True):
            hits = []
            for rank, item in enumerate(self.items(numbers[numbers >= 0]), 1):
                score = float(near[rank - 1])
                same = None if threshold is None else bool(score >= threshold)
                hits.append(Hit(rank, score, item.row, item.path, item.label, item.file, same))
            answers.append(hits)
        return answers

    def checked_queries(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [q, dim] ready to be compared.  Raises ValueError: another dimension, NaN, infinity."""
        embeddings = np.asarray(embeddings)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(
                f"queries have shape {list(embeddings.shape)}; this index holds [n, {self.dim}]"
            )
        if not np.isfinite(embeddings).all():
            raise ValueError("queries hold NaN or infinity")
        return prepared(embeddings, self.similarity)


def calibration_of(manifest: Mapping[str, Any]) -> Calibration | None:
    """The threshold that index.json records."""
    found = manifest["calibration"]
    if found is None:
        return None
    intervals = {name: tuple(found[name]) for name in ("fmr_interval", "fnmr_interval")}
    return Calibration(**{**found, **intervals})
