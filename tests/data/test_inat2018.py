"""iNaturalist-2018: Smooth-AP's lists, whose categories are numbers within groups."""

import pytest
from further_archives import SMALL

from dml.data.sets import inat2018


@pytest.fixture
def made(further):
    _, root = further("inat2018")
    return root


def test_each_image_has_the_category_of_its_folder(made):
    """Categories are in the order of their numbers, not of the words: 9 comes before 10."""
    index = inat2018.load(root=str(made), protocol="standard_full")
    for split in ("train", "test"):
        images = index.part(split)
        assert (len(images), images.num_classes) == SMALL["inat2018"][split]
        listed = (made / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt").read_text()
        assert images.relative_paths.tolist() == listed.split()
        for path, label, group in zip(
            images.relative_paths, images.labels, images.superclasses, strict=True
        ):
            _, group_name, category, _ = path.split("/")
            assert images.class_names[label] == f"{group_name}/{category}"
            assert ("Aves", "Insecta", "Plantae")[group] == group_name
    assert [name.split("/")[1] for name in index.class_names] == [str(n) for n in range(14)]


def test_lists_beside_the_images_will_do(made):
    """So the authors of other losses keep them."""
    before = inat2018.load(root=str(made))
    for file in (made / "Inat_dataset_splits").iterdir():
        file.rename(made / file.name)
    (made / "Inat_dataset_splits").rmdir()
    assert inat2018.load(root=str(made)).fingerprint() == before.fingerprint()


def test_the_competition_alone_is_not_enough(made, problems_of):
    (made / "Inat_dataset_splits").rename(made.parent / "elsewhere")
    ((_, what),) = problems_of(inat2018.load, root=str(made))
    assert "not the lists that split them" in what
    assert "drive.google.com" in what


def test_images_not_unpacked_are_named(made, problems_of):
    (made / "train_val2018").rename(made.parent / "elsewhere")
    ((_, what),) = problems_of(inat2018.load, root=str(made))
    assert "59 of 59 images are missing" in what
    assert "dml-data prepare=inat2018" in what


def test_other_lists_are_refused(made, problems_of):
    """Lists of the competition of 2017 name other folders, without numbers."""
    file = made / "Inat_dataset_splits" / "Inaturalist_test_set1.txt"
    file.write_text("train_val_images/Aves/Ara macao/1.jpg\n" + file.read_text())
    ((_, what),) = problems_of(inat2018.load, root=str(made))
    assert "'train_val_images/Aves/Ara macao/1.jpg'" in what
