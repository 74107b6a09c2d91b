"""data=csv: images listed in a file, and everything that can be wrong with one."""

from pathlib import Path

import numpy as np
import pytest

from dml.data.sets import csv_file

OPTIONS = {"seed": 0, "test_fraction": 0.5, "val_fraction": 0.0}


@pytest.fixture
def listed(tmp_path, make_image):
    """Write labels.csv, and the images that its rows name; gives `load` its options."""

    def write(text, images=True, **options):
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        for line in text.splitlines()[1:] if images else ():
            path = line.split(",")[0].strip()
            if path.endswith(".png"):
                make_image(tmp_path / path)
        return {"root": str(tmp_path), "labels": "labels.csv", **OPTIONS, **options}

    return write


EIGHT = "path,label\n" + "".join(f"i/{c}{i}.png,{c}\n" for c in "abcdefgh" for i in range(2))
SPLIT = "path,label,split\n" + "".join(
    f"{c}{i}.png,{c},{split}\n"
    for c, split in zip("abcd", ("train",) * 2 + ("test",) * 2, strict=True)
    for i in (0, 1)
)
WHERE = "data.labels=labels.csv"


def summary(index):
    """Split -> class names."""
    return {split: index.part(split).class_names for split in index.splits}


def test_split_by_seed(listed):
    index = csv_file.load(**listed(EIGHT))
    assert index.class_names == tuple("abcdefgh")
    assert {split: len(names) for split, names in summary(index).items()} == {"train": 4, "test": 4}
    assert all((index.root / path).is_file() for path in index.paths)
    with_val = csv_file.load(**listed(EIGHT, val_fraction=0.5))
    assert summary(with_val)["test"] == summary(index)["test"]
    assert len(summary(with_val)["val"]) == 2


def test_own_split(listed):
    index = csv_file.load(**listed(SPLIT))
    assert summary(index) == {"train": ("a", "b"), "test": ("c", "d")}


def test_labels_that_are_numbers_sort_by_value_and_names_are_shown(listed):
    rows = [("0.png", 10, "ten"), ("1.png", 2, "two"), ("2.png", 1, "same"), ("3.png", 3, "same")]
    text = "label, class_name ,path\n" + "".join(f"{n},{name},{path}\n" for path, n, name in rows)
    options = listed(text, images=False)
    for path, _, _ in rows:
        listed(f"path,label\n{path},0\n")
    options = listed(text, images=False)
    index = csv_file.load(**options)
    assert index.class_names == ("same (1)", "two", "same (3)", "ten")
    assert index.labels.tolist() == [3, 1, 0, 2]


def test_absolute_paths_quotes_blank_lines_and_bom(listed, tmp_path, make_image):
    outside = make_image(tmp_path / "elsewhere" / "x.png")
    make_image(tmp_path / "data" / "a,b.png")
    make_image(tmp_path / "data" / "2.png")
    make_image(tmp_path / "data" / "3.png")
    file = tmp_path / "list.csv"
    file.write_text(
        f'\ufeffpath,label\r\n{outside},p\r\n"a,b.png",q\r\n\r\n./2.png,r\r\n3.png,s\r\n',
        encoding="utf-8",
    )
    index = csv_file.load(root=str(tmp_path / "data"), labels=str(file), **OPTIONS)
    assert index.paths.tolist() == [str(outside), "a,b.png", "2.png", "3.png"]
    assert all((index.root / path).is_file() for path in index.paths)


def test_real_photographs(birds):
    index = csv_file.load(root=str(birds), labels="labels.csv", **OPTIONS)
    counts = {
        split: (len(index.part(split)), index.part(split).num_classes) for split in index.splits
    }
    assert counts == {"train": (2949, 50), "test": (2953, 50)}
    assert index.class_names[0] == "Black_footed_Albatross"
    with_val = csv_file.load(
        root=str(birds), labels="labels.csv", **{**OPTIONS, "val_fraction": 0.1}
    )
    assert len(with_val.part("val").class_names) == 5
    np.testing.assert_array_equal(with_val.splits["test"], index.splits["test"])


def test_files_are_not_asked_one_by_one(tmp_path, monkeypatch):
    """A directory is listed once, however many rows name it: 120,000 rows open in under a second."""
    rows = ["path,label"]
    for folder in range(4):
        (tmp_path / f"f{folder}").mkdir()
        for i in range(250):
            (tmp_path / f"f{folder}" / f"{i}.jpg").touch()
            rows.append(f"f{folder}/{i}.jpg,{folder}_{i}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    asked = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: asked.append(path) or is_file(path))
    index = csv_file.load(root=str(tmp_path), labels="labels.csv", **OPTIONS)
    assert len(index.paths) == 1000
    assert asked == [tmp_path / "labels.csv"]


def test_missing_file(listed, tmp_path, problems_of):
    options = listed(EIGHT) | {"labels": "label.csv"}
    assert problems_of(csv_file.load, **options) == [
        (
            "data.labels=label.csv",
            f"there is no file {tmp_path / 'label.csv'}.\nIn {tmp_path} there is labels.csv.",
        )
    ]


def test_nothing_given(problems_of):
    assert problems_of(csv_file.load, root=None, labels=None) == [
        ("data.root", "has no value. Add data.root=DIR, your images."),
        ("data.labels", "has no value. Add data.labels=FILE, with columns path and label."),
    ]


def test_missing_root(tmp_path, problems_of):
    found = problems_of(csv_file.load, root=str(tmp_path / "no"), labels="labels.csv")
    assert found == [
        (
            f"data.root={tmp_path / 'no'}",
            f"there is no {tmp_path / 'no'}; of its path, {tmp_path} exists.",
        ),
        (WHERE, f"there is no file {tmp_path / 'no' / 'labels.csv'}."),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty. Its first line must name the columns: path,label"),
        ("path,label\n", "lists no images: nothing follows the header."),
        (
            "file,label\na.png,1\n",
            "has no column path; it has file, label.\n"
            "The first line must name the columns, separated by commas: path,label",
        ),
        (
            "path;label\na.png;1\n",
            "has no column path and no column label; it has path;label.\n"
            "The first line must name the columns, separated by commas: path,label",
        ),
        (
            "path,label\na.png,1,x\nb.png,2\nc.png\n",
            "rows 2, 4 have not as many cells as the header (2).\n"
            'Put cells that hold a comma in quotes: "a,b.jpg"',
        ),
    ],
)
def test_not_such_a_file(listed, problems_of, text, message):
    assert problems_of(csv_file.load, **listed(text)) == [(WHERE, message)]


def test_not_text(listed, tmp_path, problems_of):
    options = listed(EIGHT)
    (tmp_path / "labels.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    ((_, what),) = problems_of(csv_file.load, **options)
    assert what.startswith("cannot be read as CSV in UTF-8 (")


def test_missing_images(listed, tmp_path, problems_of):
    options = listed(EIGHT)
    for name in ("a0", "c1", "h0", "h1"):
        (tmp_path / "i" / f"{name}.png").unlink()
    assert problems_of(csv_file.load, **options) == [
        (
            WHERE,
            f"4 of 16 images are missing from {tmp_path}: i/a0.png (row 2), i/c1.png (row 7), "
            "i/h0.png (row 16) and 1 more.\n"
            "Paths start at data.root; correct that option, the paths, or remove the rows.",
        )
    ]


def test_image_listed_twice(listed, problems_of):
    assert problems_of(csv_file.load, **listed(EIGHT + "i/./a0.png,a\n")) == [
        (
            WHERE,
            "1 images are listed twice: i/a0.png (rows 2 and 18).\n"
            "An image has one row; it would be found as its own neighbour. Remove the others.",
        )
    ]


def test_unknown_split_word(listed, problems_of):
    text = SPLIT.replace("d0.png,d,test", "d0.png,d,query").replace("a0.png,a,train", "a0.png,a,")
    assert problems_of(csv_file.load, **listed(text)) == [
        (
            WHERE,
            "rows 2, 8 have the unknown split '', 'query'.\n"
            "A split is train, val or test; without the column, classes are split by data.seed.",
        )
    ]


def test_class_in_train_and_test(listed, problems_of):
    assert problems_of(
        csv_file.load, **listed(SPLIT.replace("a1.png,a,train", "a1.png,a,test"))
    ) == [
        (
            WHERE,
            "1 class is in both train and test: a.\nSplits share no class: what is measured must be "
            "unseen in training. Give each class one split.",
        )
    ]


def test_split_without_test(listed, problems_of):
    assert problems_of(csv_file.load, **listed(SPLIT.replace("test", "val"))) == [
        (
            WHERE,
            "the test split has 0 classes, and needs at least 2.\n"
            "Move or add classes, or name no splits: they are then made by seed.",
        )
    ]


def test_too_few_training_classes_for_validation(listed, problems_of):
    assert problems_of(csv_file.load, **listed(SPLIT, val_fraction=0.5)) == [
        (
            WHERE,
            "the train split has 1 class, and needs at least 2; "
            "the val split has 1 class, and needs at least 2.\n"
            "Add training classes, or data.val_fraction=0 where no val split is named.",
        )
    ]


def test_one_label_with_two_names(listed, problems_of):
    text = "path,label,class_name\n" + "".join(f"{i}.png,{i // 2},n{i // 2}\n" for i in range(8))
    assert problems_of(csv_file.load, **listed(text.replace("0.png,0,n0", "0.png,0,other"))) == [
        (
            WHERE,
            "1 labels have more than one class_name: 0 (other, n0).\n"
            "Rows with the same label are one class; give them one name.",
        )
    ]


def test_all_problems_of_a_file_at_once(listed, tmp_path, problems_of):
    text = SPLIT + "a0.png,a,train\nz.png,,train\n,c,test\nq.png,q,tset\n"
    options = listed(text)
    (tmp_path / "z.png").unlink()
    found = problems_of(csv_file.load, **options)
    assert [what.splitlines()[0] for _, what in found] == [
        "row 12 has no path. Fill in or remove it.",
        "row 11 has no label. Fill in or remove it.",
        "1 images are listed twice: a0.png (rows 2 and 10).",
        f"1 of 12 images are missing from {tmp_path}: z.png (row 11).",
        "row 13 has the unknown split 'tset'.",
    ]
