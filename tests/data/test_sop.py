"""data=sop: the published split, superclasses, and the Reality Check's halves."""

import subprocess
import sys

import archives
import numpy as np
import pytest

from dml.data.sets import sop


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """120,053 links to one image in the published layout."""
    return archives.sop(tmp_path_factory.mktemp("sop"), archives.OFFICIAL["sop"], linked=True)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A few images in the published layout."""
    monkeypatch.setattr(sop, "COUNTS", archives.SMALL["sop"])
    return archives.sop(tmp_path / "data")


def test_official_counts(official):
    """59,551 images of products 1-11,318 against 60,502 of 11,319-22,634."""
    index = sop.load(root=str(official), protocol="standard_full")
    parts = {split: index.part(split) for split in index.splits}
    assert {s: (len(p), p.num_classes) for s, p in parts.items()} == archives.OFFICIAL["sop"]
    assert parts["train"].class_names[0] == "bicycle 1"
    assert parts["train"].class_names[-1] == "toaster 11318"
    assert parts["test"].class_names[0] == "bicycle 11319"
    assert parts["test"].class_names[-1] == "toaster 22634"
    assert parts["test"].relative_paths[-1].startswith("toaster_final/")
    for part in parts.values():
        assert part.labels.min() == 0
        assert part.labels.max() == part.num_classes - 1
        assert part.superclasses is not None
        assert np.unique(part.superclasses).tolist() == list(range(12))


def test_halves_of_all_classes(official):
    """The Reality Check pools all 22,634 classes: 8,488 train, 2,829 validate, 11,317 are tested."""
    options = {"protocol": "kfold", "fold": 0, "halves": True}
    index = sop.load(root=str(official), **options)
    classes = {split: index.part(split).class_names for split in index.splits}
    assert {split: len(names) for split, names in classes.items()} == {
        "train": 8488,
        "val": 2829,
        "test": 11317,
    }
    assert classes["test"][0] == "toaster 11318"
    assert classes["val"][-1] == "toaster 11317"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_opening_takes_little_memory(official):
    """Under 300 MB for a process that opens the whole index."""
    code = "import sys; from dml.data.sets import sop; sop.load(root=sys.argv[1]); print(peak())"
    # Not getrusage: its peak includes that of the process which started this one.
    peak = (
        "def peak(): return re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
    )
    command = [sys.executable, "-c", f"import re\n{peak}{code}", str(official)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 300e6


def test_small(small):
    index = sop.load(root=str(small))
    assert index.root == (small / "Stanford_Online_Products").absolute()
    train = index.part("train")
    kinds = [name.rsplit(" ", 1)[0] for name in train.class_names]
    for label, group in zip(train.labels, train.superclasses, strict=True):
        assert archives.SUPERCLASSES[group] == kinds[label]
    assert index.part("test").class_names[0] == "bicycle 9"
    assert index.part("test").labels[0] == 0


def test_fingerprint_knows_superclasses(small):
    before = sop.load(root=str(small)).fingerprint()
    file = small / "Stanford_Online_Products" / "Ebay_train.txt"
    file.write_text(file.read_text().replace(" 1 bicycle", " 2 bicycle", 1))
    assert sop.load(root=str(small)).fingerprint() != before


def test_without_its_header(small, problems_of):
    """A list of another release would lose its first image to the header."""
    file = small / "Stanford_Online_Products" / "Ebay_test.txt"
    file.write_text(file.read_text().split("\n", 1)[1])
    ((_, what),) = problems_of(sop.load, root=str(small))
    assert f"{file} is damaged or another list: unexpected is '34 9 1 bicycle_final/" in what


def test_a_cell_that_is_no_number(small, problems_of):
    file = small / "Stanford_Online_Products" / "Ebay_test.txt"
    file.write_text(file.read_text().replace("\n34 9 1 ", "\n34 nine 1 "))
    ((_, what),) = problems_of(sop.load, root=str(small))
    assert "'nine'" in what


def test_the_test_list_twice(small, problems_of):
    """Ids that start again at 1 would make training classes of the test classes: counts tell."""
    folder = small / "Stanford_Online_Products"
    (folder / "Ebay_test.txt").write_text((folder / "Ebay_train.txt").read_text())
    ((_, what),) = problems_of(sop.load, root=str(small))
    assert "test 33 images of 8 classes" in what


def test_missing_images_and_archives(small, tmp_path, problems_of):
    for path in (small / "Stanford_Online_Products" / "bicycle_final").iterdir():
        path.unlink()
    ((_, what),) = problems_of(sop.load, root=str(small))
    assert " of 59 images are missing from " in what
    (tmp_path / "packed").mkdir()
    archives.pack(small, tmp_path / "packed" / "Stanford_Online_Products.zip")
    ((_, what),) = problems_of(sop.load, root=str(tmp_path / "packed"))
    assert what.startswith("holds Stanford_Online_Products.zip, not unpacked.")
    ((_, what),) = problems_of(sop.load, root=str(tmp_path / "packed" / "none"))
    assert "dml-data prepare=sop" in what
