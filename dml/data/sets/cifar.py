"""What CIFAR-10 and CIFAR-100 share: batches of 32 x 32 RGB images, pickled by Python 2."""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dml.data.sets.sources import Source
from dml.data.sets.written import Part, image_files

RECONSTRUCT = np.empty(0).__reduce__()[0]  # moved from numpy.core to numpy._core; pickles name both
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
BROKEN = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # what damaged pickles raise


@dataclass(frozen=True)
class Layout:
    """Where the arrays are.

    folder: of all files.  batches: published part -> its files, in order.  meta: the file of the names.
    levels: the labels that name an image's folder, outermost first: "label" for `labels` and `label_names`.
    """

    folder: str
    batches: Mapping[str, Sequence[str]]
    meta: str
    levels: Sequence[str]


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles lists, words, numbers and arrays, and refuses whatever could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Called by the base class for everything that a pickle refers to by name."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return ALLOWED[module, name]


def images(
    source: Source, layout: Layout, folder: str, counts: Mapping[str, tuple[int, int]]
) -> tuple[Path, list[str]]:
    """The directory `folder` of PNG files, at or below data.root, and its images; see `image_files`."""
    place, _ = source.locate({"images": folder, "batches": layout.folder}, lambda place: None)
    directory = place / folder
    return directory, image_files(source, directory, lambda: read(source, place, layout), counts)


def unpickled(source: Source, path: Path) -> dict[str, Any]:
    """The dictionary in a published file.  Raises ConfigurationError if it is missing or damaged."""
    try:
        with path.open("rb") as stream:
            return dict(ArrayUnpickler(stream, encoding="latin1").load())
    except Exception as error:  # a damaged pickle fails in any way; each means: not a whole file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise source.refused(
            f"cannot read {path} ({reason:.200}).\nUnpack it again: {source.prepare}"
        ) from error


def read(source: Source, directory: Path, layout: Layout) -> list[Part]:
    """The arrays below `directory`.  Raises ConfigurationError if they are missing or damaged."""
    folder = directory / layout.folder
    meta = unpickled(source, folder / layout.meta)
    parts = []
    for name, files in layout.batches.items():
        batches = [unpickled(source, folder / file) for file in files]
        try:
            rows = np.concatenate([batch["data"] for batch in batches])
            pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # stored plane by plane
            words = [
                [meta[f"{level}_names"][n] for batch in batches for n in batch[f"{level}s"]]
                for level in layout.levels
            ]
            names = {name for level in words for name in level}
            if odd := [name for name in names if not re.fullmatch(r"[\w-]+", name)]:
                raise ValueError(f"a class is called {odd[0]!r}")  # names become directories
            folders = ["/".join(levels) for levels in zip(*words, strict=True)]
            if len(folders) != len(pixels):
                raise ValueError(f"{len(folders)} labels for {len(pixels)} images")
        except BROKEN as error:
            raise source.refused(
                f"{folder} does not hold the published batches ({error}).\n"
                f"Unpack it again: {source.prepare}"
            ) from error
        parts.append(Part(name, np.ascontiguousarray(pixels), folders))
    return parts
