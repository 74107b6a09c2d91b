"""MNIST: images written once from IDX files, wherever they lie."""

import gzip
import shutil

import numpy as np
import pytest
from further_archives import pictures_of, shares
from PIL import Image

from dml.data.sets import mnist


@pytest.mark.parametrize("packed", [True, False])
def test_every_digit_keeps_its_class_and_its_pixels(further, packed):
    _, root = further("mnist", packed=packed)
    index = mnist.load(root=str(root))
    labels = dict(zip(("train", "test"), shares(mnist.COUNTS), strict=True))
    assert index.class_names == tuple("01234567")
    for path, label in zip(index.paths, index.labels, strict=True):
        part, number = path.split("/")[1].removesuffix(".png").split("-")
        image = pictures_of(labels[part], (28, 28))[int(number)]
        assert image[0, 0] == label == labels[part][int(number)]
        with Image.open(index.root / path) as file:
            np.testing.assert_array_equal(np.asarray(file), image)


def test_the_first_half_of_the_digits_trains(further):
    _, root = further("mnist")
    index = mnist.load(root=str(root), protocol="standard_full")
    assert index.classes_of("train").tolist() == [0, 1, 2, 3]
    assert index.classes_of("test").tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("place", [".", "digits", "MNIST/raw"])
def test_the_four_files_may_lie_anywhere_near(further, tmp_path, place):
    _, root = further("mnist")
    expected = mnist.load(root=str(root)).fingerprint()
    shutil.copytree(root / "MNIST" / "raw", tmp_path / "other" / place)
    assert mnist.load(root=str(tmp_path / "other")).fingerprint() == expected


def spoil(root, name, change):
    file = root / "MNIST" / "raw" / name
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("t10k-images-idx3-ubyte.gz", lambda b: b[:-40], "t10k-images-idx3-ubyte"),
        ("t10k-images-idx3-ubyte.gz", lambda b: b"<html>", "t10k-images-idx3-ubyte"),
        ("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(gzip.decompress(b)[:-1]), "reshape"),
        ("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(b"\0\0\x0d\1"), "no such array"),
    ],
)
def test_damaged_files_are_refused(further, problems_of, name, change, message):
    _, root = further("mnist")
    spoil(root, name, change)
    ((_, what),) = problems_of(mnist.load, root=str(root))
    assert message in what
    assert "dml-data prepare=mnist" in what
    assert not (root / "MNIST" / "mnist-images").exists()


def test_a_missing_file_is_named(further, problems_of):
    _, root = further("mnist")
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    ((_, what),) = problems_of(mnist.load, root=str(root))
    assert "t10k-labels-idx1-ubyte" in what


def test_images_and_labels_that_do_not_belong_together(further, problems_of):
    _, root = further("mnist")
    raw = root / "MNIST" / "raw"
    shutil.copy(raw / "t10k-labels-idx1-ubyte.gz", raw / "train-labels-idx1-ubyte.gz")
    ((_, what),) = problems_of(mnist.load, root=str(root))
    assert "32 train images and 8 labels" in what


def test_clothes_under_the_names_of_digits_are_refused(further, problems_of, monkeypatch):
    """Fashion-MNIST has the same files and totals, but as many of each class."""
    _, root = further("mnist")
    monkeypatch.setattr(mnist, "COUNTS", {"train": (21, 4), "test": (19, 4)})
    ((_, what),) = problems_of(mnist.load, root=str(root))
    assert "should have train 21 images of 4 classes" in what
    assert not (root / "MNIST" / "mnist-images").exists()
