"""MNIST (LeCun et al., 1998): 70,000 handwritten digits of 28 x 28 pixels.

The literature trains and tests on the same ten digits.  Here, by our choice, 0-4 train and 5-9 are tested,
each with the images of both published parts.  Ten classes make a quick check, not a benchmark.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.halves import halves
from dml.data.sets.sources import Source
from dml.data.sets.written import Part, image_files

# Addresses and checksums: torchvision.datasets.MNIST.
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
SITES = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
FILES = tuple(
    RemoteFile(file, urls=tuple(site + file for site in SITES), md5=md5)
    for file, md5 in MD5.items()
)
# Images, classes: digits 0-4 have 5,923 + 6,742 + 5,958 + 6,131 + 5,842 images in the training part and
# 980 + 1,135 + 1,032 + 1,010 + 982 in the test part; the others are the rest of 60,000 and 10,000.
COUNTS = {"train": (35_735, 5), "test": (34_265, 5)}
IMAGES = "mnist-images"
LARGEST = 64 << 20  # bytes of an array; 60,000 images are 47 million
MARKERS = {"images": IMAGES} | {
    f"{folder}{ending}": f"{folder}train-images-idx3-ubyte{ending}"
    for folder in ("", "raw/")  # torchvision's is MNIST/raw
    for ending in ("", ".gz")
}


def load(
    *,
    root: str | None,
    name: str = "mnist",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index the four files at `root`, one directory below or in MNIST/raw, packed (.gz) or not.

    Their images are written beside them as PNG files at the first call.  protocol, val_fraction, seed, fold,
    folds: see `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there or in part, other counts (as Fashion-MNIST's), or no place to write.
    """
    source = Source(root, name, "MNIST", FILES)
    place, layout = source.locate(MARKERS, lambda place: None)
    raw = (place / MARKERS[layout]).parent
    paths = image_files(source, place / IMAGES, lambda: read(source, raw), COUNTS)
    class_names, labels = np.unique([p.split("/")[0] for p in paths], return_inverse=True)
    parts = halves(labels)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    names = tuple(class_names.tolist())
    return ImageIndex(name, place / IMAGES, np.array(paths), labels, names, splits)


def read(source: Source, directory: Path) -> list[Part]:
    """The arrays in `directory`.  Raises ConfigurationError if they are missing or damaged."""
    parts = []
    for name, file in (("train", "train"), ("test", "t10k")):
        pixels = array(source, directory / f"{file}-images-idx3-ubyte", 3)
        digits = array(source, directory / f"{file}-labels-idx1-ubyte", 1)
        if len(pixels) != len(digits):
            raise source.refused(
                f"{directory} has {len(pixels):,} {name} images and {len(digits):,} labels.\n"
                f"Get the data again: {source.prepare}"
            )
        parts.append(Part(name, pixels, [str(digit) for digit in digits]))
    return parts


def array(source: Source, path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file: two zero bytes, 8 for uint8, the dimensions, their big-endian sizes."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        with path.open("rb") if path.is_file() else gzip.open(packed) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError("it is no such array")
        shape = np.frombuffer(content, ">i4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise source.refused(
            f"cannot read {path.name} in {path.parent} ({reason}).\nGet it again: {source.prepare}"
        ) from error
