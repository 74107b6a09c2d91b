"""data=cars196: three layouts, one set of images, one split."""

import archives
import numpy as np
import pytest

from dml.data.sets import cars196

LAYOUTS = ("annos", "devkit", "kaggle")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Write a few images in one of the layouts."""
    monkeypatch.setattr(cars196, "COUNTS", archives.SMALL["cars196"])
    return lambda layout: archives.cars196(tmp_path / layout, layout=layout)


@pytest.mark.parametrize(
    "layout",
    [
        "kaggle",
        # SciPy takes seconds to write 16,185 annotations, and 0.7 s to read them.
        *(pytest.param(layout, marks=pytest.mark.slow) for layout in ("annos", "devkit")),
    ],
)
def test_official_counts(layout, tmp_path):
    """8,054 images of classes 1-98 against 8,131 of 99-196, both published halves pooled."""
    official = archives.OFFICIAL["cars196"]
    root = archives.cars196(tmp_path, official, linked=True, layout=layout)
    index = cars196.load(root=str(root), protocol="standard_full")
    parts = {split: index.part(split) for split in index.splits}
    assert {s: (len(p), p.num_classes) for s, p in parts.items()} == official
    assert parts["train"].class_names[:2] == ("Make 196 Sedan 2012", archives.RAM)
    assert parts["train"].class_names[-1] == "Make 099 Sedan 2012"
    assert parts["test"].class_names[0] == "Make 098 Sedan 2012"
    assert parts["test"].class_names[-1] == "Make 001 Sedan 2012"
    for part in parts.values():
        assert (np.diff(part.labels) >= 0).all()
        assert (part.labels[0], part.labels[-1]) == (0, 97)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, small):
    """Class ids decide, not sorted names; train and test of the official split are pooled."""
    index = cars196.load(root=str(small(layout)), protocol="standard_full")
    assert index.class_names == tuple(
        archives.RAM if c == 1 else f"Make {14 - c:03} Sedan 2012" for c in range(14)
    )
    sizes = {split: index.part(split).class_sizes().tolist() for split in index.splits}
    assert sizes == {"train": [5, 4, 4, 4, 4, 4, 4, 4], "test": [5, 5, 4, 4, 4, 4]}
    assert all((index.root / path).is_file() for path in index.paths)
    with_slash = index.part("train").relative_paths[index.part("train").labels == 1]
    assert len(with_slash) == 4


def test_copies_with_nested_folders(small):
    """cars_train/cars_train/*.jpg, and all .mat files in devkit/."""
    root = small("devkit")
    for split in ("train", "test"):
        (root / f"cars_{split}").rename(root / "aside")
        (root / f"cars_{split}").mkdir()
        (root / "aside").rename(root / f"cars_{split}" / f"cars_{split}")
    (root / "cars_test_annos_withlabels.mat").rename(
        root / "devkit" / "cars_test_annos_withlabels.mat"
    )
    assert len(cars196.load(root=str(root)).labels) == 59


@pytest.mark.parametrize(
    ("gone", "left"), [("cars_test", "cars_train"), ("cars_train", "cars_test")]
)
def test_one_half_of_the_official_split(small, gone, left, problems_of):
    root = small("devkit")
    (root / gone).rename(root.parent / "elsewhere")
    ((_, what),) = problems_of(cars196.load, root=str(root))
    assert what.startswith(f"holds {left} without {gone}: one half of the split by images")


def test_the_test_list_without_labels(small, problems_of):
    root = small("devkit")
    labelled = root / "cars_test_annos_withlabels.mat"
    labelled.unlink()
    ((_, what),) = problems_of(cars196.load, root=str(root))
    assert "lacks cars_test_annos_withlabels.mat" in what
    (root / "devkit" / "cars_test_annos.mat").rename(labelled)
    ((_, what),) = problems_of(cars196.load, root=str(root))
    assert "cars_test_annos_withlabels.mat has no classes: it is the list without labels" in what


def test_class_folders_without_their_numbers(small, problems_of):
    """Names in sorted order are another split; it must not be made silently."""
    root = small("kaggle")
    for name in ("anno_train.csv", "names.csv"):
        (root / name).unlink()
    ((_, what),) = problems_of(cars196.load, root=str(root))
    assert "holds class folders without anno_train.csv" in what


@pytest.mark.parametrize(("layout", "file"), [("annos", "cars_annos.mat"), ("kaggle", "names.csv")])
def test_missing_and_damaged_files(layout, file, small, problems_of):
    root = small(layout)
    (root / file).write_bytes(b"\xff\xfe no such file \x00" * 20)
    ((_, what),) = problems_of(cars196.load, root=str(root))
    assert f"cannot read {root / file}" in what
    (root / file).unlink()
    ((_, what),) = problems_of(cars196.load, root=str(root))
    assert file in what


def test_classes_beyond_the_names(small, problems_of):
    root = small("kaggle")
    file = root / "names.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:5]) + "\n")
    ((_, what),) = problems_of(cars196.load, root=str(root))
    assert "has classes beyond the 5 of names.csv" in what


def test_missing_images_and_archives(small, tmp_path, problems_of):
    root = small("annos")
    (root / "car_ims" / "000002.jpg").unlink()
    ((_, what),) = problems_of(cars196.load, root=str(root))
    assert f"1 of 59 images are missing from {root}: car_ims/000002.jpg" in what
    (tmp_path / "packed").mkdir()
    archives.pack(root, tmp_path / "packed" / "car_ims.tgz")
    ((_, what),) = problems_of(cars196.load, root=str(tmp_path / "packed"))
    assert what.startswith("holds car_ims.tgz, not unpacked.")
