"""What the commands read: bundles, folders, and embeddings from elsewhere, checked before the work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dml import bundle_format, embedding_files
from dml.errors import ConfigurationError, Problem, RunError
from dml.index.searchable import Searchable
from dml.index.writing import Source


@dataclass(frozen=True)
class Bundle:
    """An encoder that is yet to be loaded.

    path: as index.json keeps it, absolute, or hf://...
    """

    word: str
    path: str
    fingerprint: str
    dim: int
    similarity: str

    def as_dict(self) -> dict[str, str]:
        """What index.json says of it."""
        return {"path": self.path, "fingerprint": self.fingerprint}

    def load(self, device: str | None) -> Any:
        """The encoder, on `device` (None: a GPU where there is one).

        Raises ConfigurationError: no such device; RunError: the bundle is damaged.
        """
        import torch

        from dml import load_encoder

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(
                [Problem(f"device={device}", f"cannot be used: {reason}")]
            ) from error
        return load_encoder(self.path, device)


def bundle(value: str) -> Bundle:
    """The description of an encoder.  Raises ConfigurationError: no bundle, or a damaged one."""
    from_hub = value.startswith("hf://")
    directory = Path(value).expanduser().absolute()
    try:
        if from_hub:
            from dml.bundle import downloaded

            description = bundle_format.read(downloaded(value, None))
        else:
            description = bundle_format.read(directory)
    except RunError as error:
        raise ConfigurationError([Problem(f"encoder={value}", str(error))]) from error
    return Bundle(
        word=value,
        path=value if from_hub else str(directory),
        fingerprint=description.fingerprint,
        dim=description.dim,
        similarity=description.geometry,
    )


def bundle_of(index: Searchable, value: str | None) -> Bundle:
    """The encoder that an index was built by, or the one named, which must be the same.

    Raises ConfigurationError: another encoder, none recorded, or the bundle has moved.
    """
    where = f"encoder={value}"
    if index.encoder_fingerprint is None:
        what = "holds embeddings from elsewhere, and knows no encoder.\nGive embeddings: FILE.npy."
        if value is None:
            raise ConfigurationError([Problem(f"index={index.path}", what)])
        raise ConfigurationError([Problem(where, f"{index.path} {what}")])
    if value is None:
        value = str(index.encoder_path)
        if not value.startswith("hf://") and not Path(value).is_dir():
            what = f"the bundle that {index.path} was built with is gone from {value}.\n"
            raise ConfigurationError(
                [Problem("encoder", what + "Say where it is: encoder=BUNDLE.")]
            )
    found = bundle(value)
    if found.fingerprint != index.encoder_fingerprint:
        what = (
            f"is not the encoder that {index.path} was built with (fingerprints {found.fingerprint[:12]} "
            f"and {index.encoder_fingerprint[:12]}).\nEmbeddings of two encoders do not compare. Use "
            f"{index.encoder_path}, or build another index."
        )
        raise ConfigurationError([Problem(f"encoder={value}", what)])
    return found


def embeddings_of(
    word: str, value: str, similarity: str | None = None, labels: str | None = None
) -> tuple[Source, str]:
    """Embeddings out of an .npz or .npy, and how they are compared.

    .npz: `embeddings` [n, dim] and, where wanted, `labels` [n] (integers or text), `paths` [n] and the word
    `similarity`, as dml-eval writes them.  .npy: the embeddings; labels: an .npy of them.  Nothing pickled
    is read.  Raises ConfigurationError with all that is wrong.
    """
    where, path = f"{word}={value}", Path(value).expanduser()
    if path.suffix not in (".npz", ".npy"):
        raise ConfigurationError([Problem(where, "must end in .npz or .npy.")])
    try:
        if path.suffix == ".npz":
            arrays = embedding_files.arrays_of(path)
        else:
            arrays = {"embeddings": np.load(path, allow_pickle=False)}
        if labels is not None:
            where, arrays["labels"] = f"labels={labels}", np.load(labels, allow_pickle=False)
    except Exception as error:  # a foreign file can fail in any way; every one means the same
        what = f"cannot be read ({embedding_files.reason(error)})."
        raise ConfigurationError([Problem(where, what)]) from error
    checked = {
        name: arrays[name]
        for name in arrays
        if name in ("embeddings", "labels", "paths", "similarity")
    }
    if "labels" not in checked and "embeddings" in checked:
        checked["labels"] = np.zeros(checked["embeddings"].shape[:1], dtype=np.int64)
    if problems := embedding_files.problems_of(checked):
        raise ConfigurationError([Problem(where, problem) for problem in problems])
    vectors = arrays["embeddings"].astype(np.float32, copy=False)
    paths = [str(path) for path in arrays.get("paths", np.arange(len(vectors)))]
    names: list[str | None] = [None] * len(vectors)
    if "labels" in arrays:
        names = [str(label) for label in arrays["labels"]]
    compared = similarity or str(arrays.get("similarity", "cosine"))
    return Source(None, paths, names, vectors), compared
