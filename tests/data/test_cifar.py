"""CIFAR-10 and CIFAR-100: images written once from batches that Python 2 pickled."""

import pickle

import numpy as np
import pytest
from further_archives import CIFAR10, pictures_of, shares, write_pickle
from PIL import Image
from torchvision.datasets import CIFAR10 as Torchvision

from dml.data.sets import cifar10, cifar100


def pixels(index, position):
    with Image.open(index.root / index.paths[position]) as image:
        return np.asarray(image)


@pytest.mark.parametrize(("name", "module"), [("cifar10", cifar10), ("cifar100", cifar100)])
def test_every_image_keeps_its_class_and_its_pixels(further, name, module):
    """The first values tell class and number; colours are stored plane by plane."""
    _, root = further(name)
    index = module.load(root=str(root))
    labels = dict(zip(("train", "test"), shares(module.COUNTS), strict=True))
    for position, (path, label) in enumerate(zip(index.paths, index.labels, strict=True)):
        part, number = path.rpartition("/")[2].removesuffix(".png").split("-")
        flat = pictures_of(labels[part], (3072,))[int(number)]
        assert flat[0] == label == labels[part][int(number)]
        np.testing.assert_array_equal(
            pixels(index, position), np.stack(flat.reshape(3, 32, 32), -1)
        )


def test_batches_follow_one_another_as_in_torchvision(further, monkeypatch):
    """The same images in the same order as torchvision reads from the same folder."""
    _, root = further("cifar10")
    index = cifar10.load(root=str(root))
    monkeypatch.setattr(Torchvision, "_check_integrity", lambda self: True)
    monkeypatch.setattr(Torchvision, "_load_meta", lambda self: None)
    for part, training in (("train", True), ("test", False)):
        theirs = Torchvision(root, train=training)
        assert len(theirs) == sum(part in path for path in index.paths)
        for n, (image, label) in enumerate(theirs):
            position = index.paths.tolist().index(f"{CIFAR10[label]}/{part}-{n:05}.png")
            np.testing.assert_array_equal(pixels(index, position), np.asarray(image))


def test_both_published_parts_are_on_both_sides(further):
    _, root = further("cifar10")
    index = cifar10.load(root=str(root), protocol="standard_full")
    assert [index.class_names[c] for c in index.classes_of("train")] == list(CIFAR10[:4])
    for split in ("train", "test"):
        parts = {path.split("/")[1].split("-")[0] for path in index.part(split).relative_paths}
        assert parts == {"train", "test"}


def test_coarse_labels_are_superclasses(further):
    _, root = further("cifar100")
    index = cifar100.load(root=str(root))
    kinds = {}
    for label, kind in zip(index.labels, index.superclasses, strict=True):
        kinds.setdefault(int(label), int(kind))
    coarse = [label * 7 % 20 for label in range(8)]
    assert [kinds[label] for label in range(8)] == [sorted(coarse).index(kind) for kind in coarse]


def test_images_are_written_once(further):
    _, root = further("cifar10")
    first = cifar10.load(root=str(root))
    (root / "cifar-10-batches-py").rename(root.parent / "no longer needed")
    assert cifar10.load(root=str(root)).fingerprint() == first.fingerprint()


def test_images_that_are_gone_are_noticed(further, problems_of):
    _, root = further("cifar10")
    index = cifar10.load(root=str(root))
    (index.root / index.paths[3]).unlink()
    ((_, what),) = problems_of(cifar10.load, root=str(root))
    assert "holds 39 images, not 40" in what
    assert "Remove that directory" in what


class Harmful:
    def __reduce__(self):
        return open, ("harm-done", "w")


def test_code_in_a_pickle_is_not_run(further, problems_of, tmp_path, monkeypatch):
    _, root = further("cifar10")
    monkeypatch.chdir(tmp_path)
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({"data": Harmful()}))
    ((_, what),) = problems_of(cifar10.load, root=str(root))
    assert "data_batch_3" in what
    assert "refers to" in what
    assert not (tmp_path / "harm-done").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "No such file"),
        (lambda file: file.write_bytes(file.read_bytes()[:-500]), "data_batch_2"),
        (lambda file: file.write_bytes(b"<html>not found</html>"), "data_batch_2"),
        (lambda file: write_pickle(file, {"labels": [0]}), "'data'"),
        (
            lambda file: write_pickle(file, {"data": pictures_of([1], (3072,)), "labels": []}),
            " labels for ",
        ),
        (
            lambda file: write_pickle(file, {"data": pictures_of([1], (3072,)), "labels": [9]}),
            "range",
        ),
        (
            lambda file: write_pickle(file, {"data": pictures_of([1], (3072,)), "labels": [1]}),
            "should have",
        ),
    ],
)
def test_damaged_batches_are_refused_and_nothing_is_written(further, problems_of, spoil, message):
    _, root = further("cifar10")
    spoil(root / "cifar-10-batches-py" / "data_batch_2")
    ((where, what),) = problems_of(cifar10.load, root=str(root))
    assert where == f"data.root={root}"
    assert message in what
    assert "dml-data prepare=cifar10" in what
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize("name", ["../../outside", "/outside", ""])
def test_a_class_cannot_lead_out_of_the_directory(further, problems_of, name):
    """Names of classes become names of directories."""
    _, root = further("cifar10")
    names = [name, *CIFAR10[1:8]]
    write_pickle(root / "cifar-10-batches-py" / "batches.meta", {"label_names": names})
    ((_, what),) = problems_of(cifar10.load, root=str(root))
    assert f"a class is called {name!r}" in what


def test_a_place_that_cannot_be_written_is_named(further, problems_of, monkeypatch):
    """Root may write anywhere, hence the failure is made."""
    _, root = further("cifar10")

    def full(self, path, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    ((_, what),) = problems_of(cifar10.load, root=str(root))
    assert "cifar10-images cannot be written (No space left on device)" in what
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
