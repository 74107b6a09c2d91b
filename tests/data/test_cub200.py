"""data=cub200: the published split, and what is mistaken for it."""

import archives
import numpy as np
import pytest

from dml.data.sets import cub200


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A few images in the published layout."""
    monkeypatch.setattr(cub200, "COUNTS", archives.SMALL["cub200"])
    return archives.cub200(tmp_path / "data")


def test_official_counts(tmp_path_factory):
    """5,864 images of classes 1-100 against 5,924 of 101-200; first and last rows; labels from 0."""
    root = archives.cub200(
        tmp_path_factory.mktemp("cub200"), archives.OFFICIAL["cub200"], linked=True
    )
    index = cub200.load(root=str(root), protocol="standard_full")
    parts = {split: index.part(split) for split in index.splits}
    assert {s: (len(p), p.num_classes) for s, p in parts.items()} == archives.OFFICIAL["cub200"]
    assert parts["train"].class_names[0] == "001.Bird_0"
    assert parts["train"].class_names[-1] == "100.Bird_1"
    assert parts["test"].class_names[0] == "101.Bird_2"
    assert parts["test"].class_names[-1] == "200.Bird_3"
    assert parts["train"].relative_paths[0].startswith("images/001.Bird_0/")
    assert parts["test"].relative_paths[-1].startswith("images/200.Bird_3/")
    for part in parts.values():
        assert part.labels.dtype == np.int64
        assert part.labels.min() == 0
        assert part.labels.max() == 99
        assert part.is_query is None
    assert index.class_disjoint


@pytest.mark.parametrize("below", ["", "CUB_200_2011"])
def test_root_is_the_set_or_above_it(small, below):
    index = cub200.load(root=str(small / below))
    assert index.root == (small / "CUB_200_2011").absolute()
    assert index.part("test").path(0).is_file()


def test_ids_are_matched_not_rows(small):
    """The lists may be in different orders: an image's class goes by its id, and so does its name."""
    before = cub200.load(root=str(small))
    for name in ("image_class_labels", "classes"):
        file = small / "CUB_200_2011" / f"{name}.txt"
        file.write_text("\n".join(reversed(file.read_text().splitlines())) + "\n")
    after = cub200.load(root=str(small))
    assert after.labels.tolist() == before.labels.tolist()
    assert after.fingerprint() == before.fingerprint()


def test_strays_are_no_images(small):
    """`._` files, .DS_Store and other pictures in the folders are not listed, hence not loaded."""
    before = cub200.load(root=str(small)).fingerprint()
    (small / "CUB_200_2011" / "images" / "001.Bird_0" / "more.jpg").write_bytes(b"")
    index = cub200.load(root=str(small))
    assert index.fingerprint() == before
    assert not any("._" in path for path in index.paths)


def test_half_unpacked(small, problems_of):
    folder = small / "CUB_200_2011" / "images" / "014.Bird_6"
    gone = sorted(folder.iterdir())
    for path in gone:
        path.unlink()
    ((where, what),) = problems_of(cub200.load, root=str(small))
    assert where == f"data.root={small}"
    assert f"{len(gone)} of 59 images are missing from {small / 'CUB_200_2011'}" in what
    assert f"images/014.Bird_6/{gone[0].name}" in what
    assert f"dml-data prepare=cub200 root={small}" in what


def test_other_counts(small, monkeypatch, problems_of):
    monkeypatch.setattr(cub200, "COUNTS", archives.OFFICIAL["cub200"])
    ((_, what),) = problems_of(cub200.load, root=str(small))
    assert "is not CUB-200-2011 as published" in what
    assert "train 59 images of 14 classes, test 0 images of 0 classes" in what
    assert "train 5,864 images of 100 classes, test 5,924 images of 100 classes" in what


def test_lists_of_two_versions(small, problems_of):
    """A class list that contradicts the folder names would be a wrong split that nobody sees."""
    file = small / "CUB_200_2011" / "image_class_labels.txt"
    file.write_text(file.read_text().replace("\n20 5\n", "\n20 6\n"))
    ((_, what),) = problems_of(cub200.load, root=str(small))
    assert "images.txt and image_class_labels.txt differ about 005.Bird_4/" in what


def test_a_damaged_list(small, problems_of):
    file = small / "CUB_200_2011" / "images.txt"
    file.write_text(file.read_text() + "60\n")
    ((_, what),) = problems_of(cub200.load, root=str(small))
    assert f"{file} is damaged or another list: unexpected is '60'" in what


def test_not_unpacked(small, tmp_path, problems_of):
    (tmp_path / "archives").mkdir()
    archives.pack(small, tmp_path / "archives" / "CUB_200_2011.tgz")
    ((_, what),) = problems_of(cub200.load, root=str(tmp_path / "archives"))
    assert what == (
        f"holds CUB_200_2011.tgz, not unpacked. Run dml-data prepare=cub200 root={tmp_path / 'archives'}"
    )


def test_the_set_of_2010(tmp_path, make_image, problems_of):
    make_image(tmp_path / "images" / "001.Black_footed_Albatross" / "a.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "files.txt").write_text("001.Black_footed_Albatross/a.jpg\n")
    ((_, what),) = problems_of(cub200.load, root=str(tmp_path))
    assert what.startswith("is CUB-200 of 2010 (6,033 images), not CUB-200-2011 (11,788).")


def test_the_split_by_images(tmp_path, make_image, problems_of):
    for split in ("train", "test"):
        make_image(tmp_path / split / "001.Black_footed_Albatross" / "a.png")
    ((_, what),) = problems_of(cub200.load, root=str(tmp_path))
    assert "split by images" in what


def test_nothing_there(tmp_path, problems_of):
    ((where, what),) = problems_of(cub200.load, root=str(tmp_path))
    assert where == f"data.root={tmp_path}"
    assert "holds no CUB-200-2011: there is no image_class_labels.txt" in what
    ((_, what),) = problems_of(cub200.load, root=str(tmp_path / "no"))
    assert what.startswith(f"there is no {tmp_path / 'no'}; of its path, {tmp_path} exists.")
    ((where, what),) = problems_of(cub200.load, root=None)
    assert where == "data.root"
    assert "dml-data prepare=cub200 root=DIR" in what
