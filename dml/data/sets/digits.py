"""Real handwriting, tiny and without a download: the 1,797 digits of scikit-learn's `load_digits`.

8 x 8 pixels of 17 grey levels (UCI optical recognition of handwritten digits, test part), enlarged to
32 x 32 by Pillow's bicubic filter so that a convolutional network has room to pool.  Ten classes make a
smoke test, not a benchmark: whole digits are train (0-4), val (5, 6) or test (7, 8, 9).
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from platformdirs import user_cache_dir

from dml.data.index import ImageIndex
from dml.data.sets.glyphs import require_complete, written_aside
from dml.errors import ConfigurationError, Problem

CLASSES = {"train": 5, "val": 2, "test": 3}
IMAGES = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)  # per digit
SIZE = 32


def load(*, name: str = "digits", root: str | None = None) -> ImageIndex:
    """The digits under `root` (None: the user's cache directory), written there if they are not yet.

    Raises ConfigurationError if `root` cannot be written or what is there is incomplete.
    """
    parent = Path(root).expanduser() if root else Path(user_cache_dir("dml", appauthor=False))
    where = f"data.root={root}" if root else f"data={name}"
    directory = (parent / "digits-1").absolute()
    if not directory.is_dir():
        try:
            written_aside(directory, write_all)
        except OSError as error:
            raise ConfigurationError(
                [
                    Problem(
                        where,
                        f"the digits cannot be written to {parent} ({error.strerror or error}).\n"
                        "Give a directory that can be written: data.root=DIR",
                    )
                ]
            ) from error
    paths = [f"digit{d}/{copy:03}.png" for d, n in enumerate(IMAGES) for copy in range(n)]
    labels = np.repeat(np.arange(len(IMAGES), dtype=np.int64), IMAGES)
    require_complete(directory, paths, where)
    splits = {
        split: np.flatnonzero((labels >= start) & (labels < stop)).astype(np.int64)
        for split, (start, stop) in zip(
            CLASSES, pairwise(np.cumsum([0, *CLASSES.values()])), strict=True
        )
    }
    class_names = tuple(f"digit{d}" for d in range(len(IMAGES)))
    return ImageIndex(name, directory, np.array(paths), labels, class_names, splits)


def write_all(directory: Path) -> None:
    """Write every digit as `digit<d>/<nnn>.png`, in scikit-learn's order."""
    from sklearn.datasets import load_digits  # here alone: it takes a second to import

    pixels, digits = load_digits(return_X_y=True)
    grey = (pixels.reshape(-1, 8, 8).astype(np.int64) * 255 // 16).astype(np.uint8)
    for digit in range(len(IMAGES)):
        folder = directory / f"digit{digit}"
        folder.mkdir()
        for copy, small in enumerate(grey[digits == digit]):
            large = Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            large.save(folder / f"{copy:03}.png")
