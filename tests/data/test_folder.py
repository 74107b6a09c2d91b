"""data=folder: one directory per class, and everything that is not."""

import numpy as np
import pytest

from dml.data.sets import folder

OPTIONS = {"seed": 0, "test_fraction": 0.5, "val_fraction": 0.0}


def tree(root, make_image, classes, per_class=2, below=""):
    for name in classes:
        for i in range(per_class):
            make_image(root / below / name / f"{i}.png")
    return root


def summary(index):
    """Split -> class names."""
    return {split: index.part(split).class_names for split in index.splits}


def test_classes_are_split_by_seed(tmp_path, make_image):
    tree(tmp_path, make_image, "abcdefgh")
    index = folder.load(root=str(tmp_path), **OPTIONS)
    assert index.class_names == tuple("abcdefgh")
    assert len(index.paths) == 16
    assert all((index.root / path).is_file() for path in index.paths)
    splits = summary(index)
    assert sorted(splits["train"] + splits["test"]) == list("abcdefgh")
    assert len(splits["test"]) == 4
    assert summary(folder.load(root=str(tmp_path), **OPTIONS)) == splits
    seeds = {
        summary(folder.load(root=str(tmp_path), **{**OPTIONS, "seed": s}))["test"] for s in range(9)
    }
    assert len(seeds) > 3


def test_validation_classes(tmp_path, make_image):
    tree(tmp_path, make_image, "abcdefgh")
    index = folder.load(root=str(tmp_path), **{**OPTIONS, "val_fraction": 0.5})
    assert {split: len(names) for split, names in summary(index).items()} == {
        "train": 2,
        "val": 2,
        "test": 4,
    }


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val", "test")])
def test_split_directories(tmp_path, make_image, splits):
    for number, split in enumerate(splits):
        tree(
            tmp_path,
            make_image,
            "abc" if split == splits[0] else [f"x{number}", f"y{number}"],
            below=split,
        )
    index = folder.load(root=str(tmp_path), **OPTIONS)
    assert set(index.splits) == set(splits)
    assert summary(index)["train"] == ("a", "b", "c")
    assert index.paths[index.splits["train"]][0] == "train/a/0.png"


def test_split_directories_without_val_still_make_one(tmp_path, make_image):
    tree(tmp_path, make_image, "abcdefgh", below="train")
    tree(tmp_path, make_image, "xyz", below="test")
    index = folder.load(root=str(tmp_path), **{**OPTIONS, "val_fraction": 0.25})
    assert summary(index)["test"] == ("x", "y", "z")
    assert len(summary(index)["val"]) == 2
    assert len(summary(index)["train"]) == 6


def test_classes_may_be_called_train_and_test(tmp_path, make_image):
    """Pictures of trains in a directory `train` are a class, not a split."""
    tree(tmp_path, make_image, ["train", "test", "car", "bus"])
    assert len(folder.load(root=str(tmp_path), **OPTIONS).class_names) == 4


def test_what_counts_as_an_image(tmp_path, make_image):
    tree(tmp_path, make_image, "abcd")
    make_image(tmp_path / "a" / "sub" / "deep.png")
    for name in ("UPPER.JPG", "x.jpeg", "x.webp", "x.bmp", "x.TIFF", "x.tif", "x.gif"):
        (tmp_path / "a" / name).touch()  # names decide here; decoding comes later
    for name in ("._0.png", ".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "nothing").mkdir()
    make_image(tmp_path / ".git" / "x.png")
    make_image(tmp_path / "__MACOSX" / "x.png")
    make_image(tmp_path / "contact_sheet.png")
    index = folder.load(root=str(tmp_path), **OPTIONS)
    assert index.class_names == tuple("abcd")
    assert [path for path in index.paths if path.startswith("a/")] == [
        *("a/0.png", "a/1.png", "a/UPPER.JPG", "a/sub/deep.png", "a/x.TIFF", "a/x.bmp"),
        *("a/x.gif", "a/x.jpeg", "a/x.tif", "a/x.webp"),
    ]


def test_real_photographs(birds):
    index = folder.load(root=str(birds / "images"), **OPTIONS)
    assert len(index.class_names) == 100
    assert {split: len(names) for split, names in summary(index).items()} == {
        "train": 50,
        "test": 50,
    }
    assert len(index.paths) == len(list((birds / "images").glob("*/*.jpg")))
    assert index.labels.dtype == np.int64


def test_missing_root(tmp_path, problems_of):
    root = tmp_path / "no" / "such"
    assert problems_of(folder.load, root=str(root), **OPTIONS) == [
        (f"data.root={root}", f"there is no {root}; of its path, {tmp_path} exists.")
    ]


def test_root_is_a_file(tmp_path, problems_of, make_image):
    path = make_image(tmp_path / "a.png")
    assert problems_of(folder.load, root=str(path), **OPTIONS) == [
        (f"data.root={path}", "is a file. Give the directory that holds the classes.")
    ]


def test_empty_root(tmp_path, problems_of):
    assert problems_of(folder.load, root=str(tmp_path), **OPTIONS) == [
        (
            f"data.root={tmp_path}",
            "holds no images. Expected DIR/<class>/<image>, with one of the extensions\n"
            ".bmp .gif .jpeg .jpg .png .tif .tiff .webp",
        )
    ]


def test_images_without_class_directories(tmp_path, problems_of, make_image):
    for i in range(5):
        make_image(tmp_path / f"{i}.png")
    assert problems_of(folder.load, root=str(tmp_path), **OPTIONS) == [
        (
            f"data.root={tmp_path}",
            "holds 5 images (0.png, 1.png, 2.png and 2 more) but no class directories.\n"
            "Move them to DIR/<class>/, or list them in a file: data=csv data.labels=FILE",
        )
    ]


def test_too_few_classes(tmp_path, problems_of, make_image):
    tree(tmp_path, make_image, "abc")
    assert problems_of(folder.load, root=str(tmp_path), **OPTIONS) == [
        (
            f"data.root={tmp_path}",
            "has 3 classes, and needs at least 2 for train and 2 for test.\nAdd classes.",
        )
    ]
    tree(tmp_path, make_image, "d")
    assert problems_of(folder.load, root=str(tmp_path), **{**OPTIONS, "val_fraction": 0.5}) == [
        (
            f"data.root={tmp_path}",
            "has 4 classes, and needs at least 2 for train and 2 for val and 2 for test.\n"
            "Add classes, or data.val_fraction=0.",
        )
    ]


def test_class_in_two_split_directories(tmp_path, problems_of, make_image):
    tree(tmp_path, make_image, "abc", below="train")
    tree(tmp_path, make_image, "bxy", below="test")
    assert problems_of(folder.load, root=str(tmp_path), **OPTIONS) == [
        (
            f"data.root={tmp_path}",
            "1 class is in both train and test: b.\nSplits share no class: what is measured must be "
            "unseen in training. Give each class one split.",
        )
    ]


def test_train_without_test_directory(tmp_path, problems_of, make_image):
    tree(tmp_path, make_image, "abc", below="train")
    tree(tmp_path, make_image, "xyz", below="val")
    ((where, what),) = problems_of(folder.load, root=str(tmp_path), **OPTIONS)
    assert where == f"data.root={tmp_path}"
    assert what == (
        "has train/ and val/ with class directories, but no test/ with any.\n"
        "Splits are train/<class>/ and test/<class>/ (and val/<class>/). For a split by seed give the "
        f"classes' own directory: data.root={tmp_path / 'train'}"
    )


def test_images_outside_the_split_directories(tmp_path, problems_of, make_image):
    tree(tmp_path, make_image, "abc", below="train")
    tree(tmp_path, make_image, "xyz", below="test")
    tree(tmp_path, make_image, "pq", below="extra")
    ((_, what),) = problems_of(folder.load, root=str(tmp_path), **OPTIONS)
    assert what.startswith("holds extra/ beside train/ and test/, and it belongs to no split.")


def test_fractions_and_root_are_reported_together(problems_of):
    found = problems_of(
        folder.load, root="/no/such/place", seed=0, test_fraction=1.0, val_fraction=-0.1
    )
    assert [where for where, _ in found] == [
        "data.test_fraction=1",
        "data.val_fraction=-0.1",
        "data.root=/no/such/place",
    ]
    assert found[0][1] == "must lie in (0, 1)."
    assert found[1][1] == "must lie in [0, 1). 0 makes no validation split."


def test_no_root(problems_of):
    assert problems_of(folder.load, root=None, **OPTIONS) == [
        ("data.root", "has no value. Add data.root=DIR, your images.")
    ]
