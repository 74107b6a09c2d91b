"""The embedded sets: the same everywhere, a fair exercise, all or nothing."""

import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dml.data.sets import digits, glyphs
from dml.errors import ConfigurationError, RunError


@pytest.fixture(scope="module")
def pixels(glyphs_root) -> np.ndarray:
    """All images as a reader sees them, uint8 [4000, 64, 64]."""
    index = glyphs.load(root=str(glyphs_root))
    return np.stack([np.asarray(Image.open(index.root / path)) for path in index.paths])


def test_counts_and_splits(glyphs_root):
    index = glyphs.load(root=str(glyphs_root))
    assert index.name == "glyphs"
    counts = {
        split: (len(index.part(split)), index.part(split).num_classes) for split in index.splits
    }
    assert counts == {"train": (2000, 100), "val": (400, 20), "test": (1600, 80)}
    assert index.class_names[:2] == ("glyph000", "glyph001")
    assert (np.bincount(index.labels) == 20).all()
    assert sorted(np.concatenate(list(index.splits.values()))) == list(range(4000))


def test_index_never_changes(glyphs_root):
    fingerprint = glyphs.load(root=str(glyphs_root)).fingerprint()
    assert fingerprint == "f2bfced9a54c88e2a54842633587980261e8ac9e17baa7ee2591b5a49c1d0cec"


def test_pixels_are_those_of_the_fingerprint(pixels):
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4000, 64, 64)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == glyphs.FINGERPRINT


def nearest_has_the_class(rows: np.ndarray, labels: np.ndarray, cosine: bool) -> float:
    """Recall@1 of float rows [n, d]."""
    if cosine:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = 2 * rows @ rows.T - (rows * rows).sum(axis=1)
    np.fill_diagonal(scores, -np.inf)
    return float((labels[scores.argmax(axis=1)] == labels).mean())


def test_raw_pixels_do_not_solve_it(pixels):
    """Measured: 0.186 (L2), 0.283 (cosine), 0.473 (cosine after subtracting each image's mean)."""
    test = pixels[2400:].reshape(1600, -1).astype(np.float32)
    labels = np.repeat(np.arange(80), 20)
    centred = test - test.mean(axis=1, keepdims=True)
    recalls = [
        nearest_has_the_class(test, labels, cosine=False),
        nearest_has_the_class(test, labels, cosine=True),
        nearest_has_the_class(centred, labels, cosine=True),
    ]
    assert max(recalls) < 0.60
    assert min(recalls) > 0.10, "chance is 0.012: the classes are there to be seen"


def test_classes_differ_and_images_differ(pixels):
    assert len({image.tobytes() for image in pixels}) == 4000
    assert len({repr(glyphs.character(number)) for number in range(200)}) == 200


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    drawn = glyphs.image

    def interrupted(number, copy):
        if number == 2:
            raise KeyboardInterrupt
        return drawn(number, copy)

    monkeypatch.setattr(glyphs, "image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        glyphs.load(root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_killed_drawing_is_never_taken_for_the_set(tmp_path):
    """A process that dies without a chance to clean up leaves no directory under the final name."""
    script = (
        "import os\nfrom dml.data.sets import glyphs\n"
        "def image(number, copy): os._exit(9)\n"
        f"glyphs.image = image\nglyphs.load(root={str(tmp_path)!r})"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".glyphs-")
    assert "-unfinished-" in left[0]


def test_left_overs_of_killed_processes_are_removed_after_a_day(tmp_path):
    import os
    import time

    old, new = (tmp_path / f".set-unfinished-{name}" for name in ("old", "new"))
    old.mkdir()
    new.mkdir()
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    glyphs.written_aside(tmp_path / "set", lambda folder: (folder / "file").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set-unfinished-new", "set"]


def test_the_first_of_two_processes_wins(tmp_path):
    def fill(folder):
        (folder / "mine").touch()
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "theirs").touch()

    glyphs.written_aside(tmp_path / "set", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["theirs"]


def test_other_pixels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "CLASSES", {"train": 1, "val": 1, "test": 1})
    with pytest.raises(
        RunError, match=r"not those of other machines(.|\n)*Pillow \d+\.\d+"
    ) as caught:
        glyphs.load(root=str(tmp_path))
    assert "Install another version" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_lost_files_are_named(glyphs_root, tmp_path, problems_of):
    directory = glyphs.load(root=str(glyphs_root)).root
    copy = tmp_path / directory.name
    shutil.copytree(directory, copy)
    (copy / "glyph007" / "03.png").unlink()
    assert problems_of(glyphs.load, root=str(tmp_path)) == [
        (
            f"data.root={tmp_path}",
            f"1 of 4000 images are missing from {copy}, glyph007/03.png first.\n"
            "Remove that directory; it is written anew at the next run.",
        )
    ]


@pytest.mark.parametrize("source", [glyphs, digits])
def test_a_root_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot be written to(.|\n)*data\.root=DIR"):
        source.load(root=str(tmp_path / "file"))


def test_default_root_is_the_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "user_cache_dir", lambda *_, **__: str(tmp_path))
    assert digits.load().root.parent == tmp_path


def test_digits(cache):
    index = digits.load(root=str(cache))
    assert digits.load(root=str(cache)).fingerprint() == index.fingerprint()
    counts = {
        split: (len(index.part(split)), index.part(split).num_classes) for split in index.splits
    }
    assert counts == {"train": (901, 5), "val": (363, 2), "test": (533, 3)}
    assert index.part("test").class_names == ("digit7", "digit8", "digit9")
    with Image.open(index.root / index.paths[0]) as image:
        assert (image.mode, image.size) == ("L", (32, 32))
        assert np.asarray(image).max() > 200
