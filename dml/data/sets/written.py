"""Sets that are published as arrays: their images are written out as PNG files, once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from dml.data.files import images_below
from dml.data.sets.glyphs import written_aside
from dml.data.sets.halves import halves
from dml.data.sets.sources import Source


class Part(NamedTuple):
    """A published part of a set: uint8 [n, h, w] grey or [n, h, w, 3] RGB, and the folder of each image."""

    name: str
    pixels: np.ndarray
    folders: Sequence[str]


def image_files(
    source: Source,
    directory: Path,
    read: Callable[[], Sequence[Part]],
    counts: Mapping[str, tuple[int, int]],
) -> list[str]:
    """The images below `directory`, `<folder>/<part>-<number>.png`, sorted; written at the first call.

    read: gives the arrays, and is called if there is no `directory` yet.  counts: images and classes of the
    halves of the set; nothing is written if the arrays have others.

    Raises ConfigurationError: other counts, images that are gone, a directory that cannot be written.
    """
    if not directory.is_dir():
        parts = read()
        folders = [folder for part in parts for folder in part.folders]
        _, labels = np.unique([name_of(folder) for folder in folders], return_inverse=True)
        source.require_counts(labels, halves(labels), counts)
        try:
            written_aside(directory, lambda aside: write(aside, parts))
        except OSError as error:
            raise source.refused(
                f"{directory} cannot be written ({error.strerror or error}).\n"
                "The images are written there once: make room, or allow it."
            ) from error
    paths = images_below(directory)
    total = sum(images for images, _ in counts.values())
    if len(paths) != total:
        raise source.refused(
            f"{directory} holds {len(paths):,} images, not {total:,}.\n"
            "Remove that directory; it is written anew from the published files."
        )
    return paths


def name_of(folder: str) -> str:
    """The class of a folder: the last part of its path."""
    return folder.rpartition("/")[2]


def write(directory: Path, parts: Sequence[Part]) -> None:
    """Write all images, with a progress bar."""
    console = Console(stderr=True)
    for part in parts:
        for folder in set(part.folders):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        numbers = track(
            range(len(part.folders)),
            description=f"Writing the {part.name} images (once)",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        for n in numbers:
            path = directory / part.folders[n] / f"{part.name}-{n:05}.png"
            Image.fromarray(part.pixels[n]).save(path, compress_level=1)  # speed
