"""Flowers-102: labels from 1 on, in no order, in a file whose checksum decides the split."""

import pytest
from scipy.io import loadmat, savemat

from dml.data.sets import flowers102


@pytest.fixture
def made(further):
    _, root = further("flowers102")
    return root


def test_image_n_has_the_nth_label(made):
    index = flowers102.load(root=str(made))
    ids = loadmat(made / "flowers-102" / "imagelabels.mat")["labels"][0].tolist()
    assert index.paths.tolist() == [f"jpg/image_{n:05}.jpg" for n in range(1, 60)]
    assert [int(index.class_names[label]) for label in index.labels] == ids
    assert index.class_names == tuple(f"{n:03}" for n in range(1, 8))


def test_the_first_half_of_the_classes_trains(made):
    """Of seven classes the middle one trains; setid.mat, the split by images, is not looked at."""
    index = flowers102.load(root=str(made), protocol="standard_full")
    assert index.classes_of("train").tolist() == [0, 1, 2, 3]
    assert index.classes_of("test").tolist() == [4, 5, 6]


def test_other_labels_are_refused(made, problems_of):
    file = made / "flowers-102" / "imagelabels.mat"
    savemat(file, {"labels": loadmat(file)["labels"][:, ::-1]})
    ((_, what),) = problems_of(flowers102.load, root=str(made))
    assert "imagelabels.mat has md5" in what


def test_the_smaller_set_is_recognised(tmp_path, make_image, problems_of):
    make_image(tmp_path / "17flowers" / "jpg" / "image_0001.jpg")
    ((_, what),) = problems_of(flowers102.load, root=str(tmp_path))
    assert "Flowers-17" in what


def test_images_without_labels_are_recognised(made, problems_of):
    (made / "flowers-102" / "imagelabels.mat").unlink()
    ((_, what),) = problems_of(flowers102.load, root=str(made))
    assert "no imagelabels.mat" in what


def test_an_archive_not_unpacked_is_named(tmp_path, problems_of):
    (tmp_path / "102flowers.tgz").write_bytes(b"")
    ((_, what),) = problems_of(flowers102.load, root=str(tmp_path))
    assert "102flowers.tgz, not unpacked" in what


def test_missing_images_are_named(made, problems_of):
    (made / "flowers-102" / "jpg" / "image_00059.jpg").unlink()
    ((_, what),) = problems_of(flowers102.load, root=str(made))
    assert "1 of 59 images are missing" in what
    assert "jpg/image_00059.jpg" in what
