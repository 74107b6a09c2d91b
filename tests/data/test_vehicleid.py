"""VehicleID: its lists, and which images are queries and which the gallery."""

import numpy as np
import pytest
from further_archives import SMALL

from dml.data.sets import vehicleid


@pytest.fixture
def made(further):
    _, root = further("vehicleid")
    return root


def rows(root, name):
    """Image and vehicle of each line, read anew."""
    file = root / "VehicleID_V1.0" / "train_test_split" / name
    return [line.split() for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("test_set", "file"),
    [
        ("small", "test_list_800.txt"),
        ("medium", "test_list_1600.txt"),
        ("large", "test_list_2400.txt"),
    ],
)
def test_each_image_has_the_vehicle_of_its_line(made, test_set, file):
    """Leading zeros belong to the image's name; vehicles are numbered anew within a split."""
    index = vehicleid.load(root=str(made), test_set=test_set, protocol="standard_full")
    for split, name, part in (("train", "train_list.txt", "train"), ("test", file, test_set)):
        images = index.part(split)
        assert (len(images), images.num_classes) == SMALL["vehicleid"][part]
        found = zip(images.relative_paths, images.labels, strict=True)
        for (path, label), (number, vehicle) in zip(found, rows(made, name), strict=True):
            assert path == f"image/{number}.jpg"
            assert images.class_names[label] == vehicle
    assert index.class_disjoint
    numbers = [int(name) for name in index.class_names]
    assert numbers == sorted(numbers)


def test_the_gallery_has_one_image_of_each_vehicle(made):
    test = vehicleid.load(root=str(made), test_set="large").part("test")
    assert np.bincount(test.labels[~test.is_query]).tolist() == [1] * test.num_classes


def test_the_gallery_is_drawn_by_its_own_seed(made):
    """Neither the seed of the validation classes nor the protocol may change what is tested."""

    def gallery(**options):
        test = vehicleid.load(root=str(made), test_set="large", **options).part("test")
        return test.relative_paths[~test.is_query].tolist()

    drawn = [gallery(gallery_seed=seed) for seed in range(40)]
    assert drawn[0] == gallery(seed=7, protocol="standard_full")
    # Every image of every vehicle has its turn.
    assert {path for paths in drawn for path in paths} == {
        f"image/{number}.jpg" for number, _ in rows(made, "test_list_2400.txt")
    }


def test_all_images_may_be_both(made):
    index = vehicleid.load(root=str(made), gallery="all")
    assert index.part("test").is_query is None


def test_validation_images_are_both(made):
    assert vehicleid.load(root=str(made)).part("val").is_query is None


def test_a_list_that_is_cut_off_is_refused(made, problems_of):
    file = made / "VehicleID_V1.0" / "train_test_split" / "train_list.txt"
    file.write_text("\n".join(file.read_text().splitlines()[:-5]))
    ((where, what),) = problems_of(vehicleid.load, root=str(made))
    assert where == f"data.root={made}"
    assert "train 28 images of" in what
    assert "should have train 33 images of 8 classes" in what


def test_missing_images_are_named(made, problems_of):
    (made / "VehicleID_V1.0" / "image" / "0000007.jpg").unlink()
    ((_, what),) = problems_of(vehicleid.load, root=str(made))
    assert "1 of 46 images are missing" in what
    assert "image/0000007.jpg" in what


def test_the_other_vehicles_are_recognised(tmp_path, problems_of):
    for folder in ("image_query", "image_train", "image_test"):
        (tmp_path / "VeRi" / folder).mkdir(parents=True)
    ((_, what),) = problems_of(vehicleid.load, root=str(tmp_path))
    assert "VeRi-776" in what


def test_a_vehicle_that_is_no_number_is_refused(made, problems_of):
    file = made / "VehicleID_V1.0" / "train_test_split" / "test_list_800.txt"
    file.write_text(file.read_text().replace(rows(made, file.name)[0][1], "red", 1))
    ((_, what),) = problems_of(vehicleid.load, root=str(made))
    assert "train_test_split is damaged" in what
    assert "'red'" in what
