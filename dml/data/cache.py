"""Small copies of the training images, made once, so that every epoch decodes less.

A copy is the whole image with its shorter side at `side` pixels, as JPEG.  An image whose shorter side
is not above that has no copy: its own file is read.  Training alone reads copies.  Evaluation, that on
the validation classes included, always decodes the files themselves, so that its pixels are those of
the published preprocessing; the record says that training read copies.

The name of a copy holds its source's path (hashed), size and time of change, its folder the side and
format: a source that changed has no copy, and gets one.  Copies are written aside and renamed, so those
of a stopped build are whole and the next one goes on.
"""

import hashlib
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from platformdirs import user_cache_dir
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from dml.data.augment import resized_size
from dml.data.decode import ImageFile, UnreadableImage
from dml.data.index import ImageSet
from dml.data.preprocess import Preprocess
from dml.errors import RunError

log = logging.getLogger("dml")

LEAST_SIDE = 256
# Beside quality 95 and 4:4:4: two thirds of the bytes and of the decoding time, for 45 instead of 48 dB
# (benchmarks/loader.py part=copies). PNG: four times the bytes, eight times the time.
FORMAT: dict[str, Any] = {"format": "JPEG", "quality": 90, "subsampling": "4:2:0"}
CHUNK = 64  # images that a worker process does at a time


class Outcome(NamedTuple):
    """copy: the file to read, below the folder of copies, or None: the image's own.

    made: whether it was made just now.  error: why a copy could not be written.
    """

    copy: str | None
    made: bool = False
    error: OSError | None = None


def resized(images: ImageSet, side: int, directory: str | None, num_workers: int) -> ImageSet:
    """The same images, read from copies whose shorter side is `side`; those that lack are made.

    directory: where the copies are kept; None: the user's cache directory.  num_workers: processes that
    make copies, 0: this one.  An unreadable image keeps its own file, for training to report.

    Raises RunError if a copy cannot be written (a full disk); what was done by then is kept.
    """
    parent = Path(directory).expanduser() if directory else Path(user_cache_dir("dml", False))
    folder = parent.absolute() / f"resized_{side}_jpeg{FORMAT['quality']}"
    chunks = DataLoader(
        Copies(images, folder, side),
        batch_size=CHUNK,
        num_workers=num_workers,
        collate_fn=list,
    )
    bar = track(
        chunks,
        f"small copies of {len(images)} images",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    outcomes: list[Outcome] = []
    for chunk in bar:
        outcomes += chunk
        error = next((outcome.error for outcome in chunk if outcome.error is not None), None)
        if error is not None:
            raise RunError(
                f"cannot write small copies to {folder} ({error.strerror or error}).\n"
                "Make room there, or add data.cache_dir=DIR or data.cache=none. Copies made by now are "
                "kept: the same command goes on."
            )
    copies = sum(outcome.copy is not None for outcome in outcomes)
    made = sum(outcome.made for outcome in outcomes)
    log.info("Small copies: %d of %d images, %d made now, in %s", copies, len(images), made, folder)
    # A path that is absolute stays as it is when it is joined to `root`.
    names = [
        str(images.path(i)) if outcome.copy is None else outcome.copy
        for i, outcome in enumerate(outcomes)
    ]
    return replace(images, root=folder, relative_paths=np.array(names))


class Copies(Dataset):
    """Item i: the copy of image i, made if there is none."""

    def __init__(self, images: ImageSet, folder: Path, side: int):
        self.images, self.folder, self.side = images, folder, side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Outcome:
        source = self.images.path(position)
        try:
            copy = copy_name(source)
            if (self.folder / copy).exists():
                return Outcome(copy)
            file = ImageFile(source)
            if min(file.height, file.width) <= self.side:
                return Outcome(None)
            image = file.image()
        except (OSError, UnreadableImage):
            return Outcome(None)
        height, width = resized_size(file.height, file.width, self.side)
        try:
            write(image.resize((width, height), Image.Resampling.BICUBIC), self.folder / copy)
        except OSError as error:
            return Outcome(None, error=error)
        return Outcome(copy, made=True)


def copy_name(source: Path) -> str:
    """`ab/<hash of the path>_<size>_<time of change>.jpg`.  Raises OSError if the source is gone."""
    state = source.stat()
    path = hashlib.sha256(os.fsencode(source)).hexdigest()[:24]
    return f"{path[:2]}/{path}_{state.st_size}_{state.st_mtime_ns}.jpg"


def write(image: Image.Image, path: Path) -> None:
    """Write a copy aside, rename it, and remove those of the source's earlier states."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(aside, **FORMAT)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    of_source = path.name.split("_")[0]
    for other in path.parent.glob(f"{of_source}_*.jpg"):
        if other.name != path.name:
            other.unlink(missing_ok=True)


def side_for(preprocess: Preprocess, resize: int | None) -> int:
    """The shorter side of copies that serve an encoder, and an augmentation that first resizes."""
    return max(LEAST_SIDE, preprocess.resize, resize or 0)


def describe(side: int) -> dict[str, Any]:
    """What the record says of a run that read copies."""
    return {"shorter_side": side, "interpolation": "bicubic", **FORMAT}
