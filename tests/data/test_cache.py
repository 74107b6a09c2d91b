"""Small copies: made once, whole or not at all, made again when their source changes, never by evaluation."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dml.data import cache
from dml.data.index import ImageSet
from dml.data.preprocess import Preprocess
from dml.errors import RunError

SIDE = 32
SIZES = {"wide.jpg": (100, 60), "tall.png": (50, 90), "small.jpg": (80, 32), "grey.jpg": (64, 64)}


@pytest.fixture
def images(tmp_path) -> ImageSet:
    """Three large images, one as small as a copy, one that is none."""
    root = tmp_path / "images"
    root.mkdir()
    for name, size in SIZES.items():
        picture = Image.new("RGB", size, (200, 100, 50))
        (picture.convert("L") if name == "grey.jpg" else picture).save(root / name)
    (root / "broken.jpg").write_bytes(b"no image")
    names = np.array([*SIZES, "broken.jpg"])
    return ImageSet(root, names, np.array([0, 0, 1, 1, 1]), ("a", "b"), np.arange(5))


def copies_in(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def state(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in copies_in(directory)}


@pytest.mark.parametrize("workers", [0, 2])
def test_large_images_are_read_from_copies_and_others_from_their_files(images, tmp_path, workers):
    found = cache.resized(images, SIDE, str(tmp_path / "cache"), workers)
    sizes = [Image.open(found.path(i)).size for i in (0, 1, 3)]
    assert sizes == [(53, 32), (32, 57), (32, 32)]
    assert [found.path(i) for i in (2, 4)] == [images.path(i) for i in (2, 4)]
    assert len(copies_in(tmp_path / "cache")) == 3
    np.testing.assert_array_equal(found.labels, images.labels)
    np.testing.assert_array_equal(found.ids, images.ids)
    colour = np.asarray(Image.open(found.path(0)), float).mean((0, 1))
    np.testing.assert_allclose(colour, (200, 100, 50), atol=2)
    assert Image.open(found.path(3)).mode == "RGB"


def test_copies_are_made_once(images, tmp_path):
    first = cache.resized(images, SIDE, str(tmp_path / "cache"), 0)
    before = state(tmp_path / "cache")
    second = cache.resized(images, SIDE, str(tmp_path / "cache"), 0)
    assert state(tmp_path / "cache") == before
    np.testing.assert_array_equal(first.relative_paths, second.relative_paths)


def test_a_source_that_changed_is_copied_again_and_the_old_copy_goes(images, tmp_path):
    """Else training would go on with pictures that are no longer there."""
    first = cache.resized(images, SIDE, str(tmp_path / "cache"), 0)
    Image.new("RGB", (100, 60), (0, 0, 255)).save(images.path(0))
    second = cache.resized(images, SIDE, str(tmp_path / "cache"), 0)
    assert not first.path(0).exists()
    assert np.asarray(Image.open(second.path(0)))[0, 0, 2] > 250
    assert second.path(1) == first.path(1)
    os.utime(images.path(1), ns=(0, 0))
    assert cache.resized(images, SIDE, str(tmp_path / "cache"), 0).path(1) != first.path(1)
    assert len(copies_in(tmp_path / "cache")) == 3


def test_other_settings_have_copies_of_their_own(images, tmp_path):
    small = cache.resized(images, SIDE, str(tmp_path / "cache"), 0)
    large = cache.resized(images, 48, str(tmp_path / "cache"), 0)
    assert Image.open(small.path(0)).height == 32
    assert Image.open(large.path(0)).height == 48


def test_a_lost_copy_is_made_again(images, tmp_path):
    first = cache.resized(images, SIDE, str(tmp_path / "cache"), 0)
    first.path(1).unlink()
    before = state(tmp_path / "cache")
    again = cache.resized(images, SIDE, str(tmp_path / "cache"), 0)
    assert again.path(1).exists()
    assert before.items() <= state(tmp_path / "cache").items()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_says_what_to_do_and_leaves_nothing_half_written(
    images, tmp_path, monkeypatch, workers
):
    """Half a JPEG under the final name would be read by every later run."""
    save, written = Image.Image.save, []

    def until_full(self, path, **options):
        save(self, path, **options)
        written.append(path)
        if len(written) == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    directory = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", until_full)
        with pytest.raises(
            RunError, match=r"No space left(.|\n)*data\.cache_dir=DIR(.|\n)*goes on"
        ):
            cache.resized(images, SIDE, str(directory), workers)
    kept = state(directory)
    found = cache.resized(images, SIDE, str(directory), workers)
    assert kept.items() <= state(directory).items()
    assert all(Image.open(found.path(i)).convert("RGB") for i in range(4))
    assert len(copies_in(directory)) == 3


def test_a_directory_that_cannot_be_written_is_named(images, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        RunError, match=r"cannot write small copies to .*cache.*\n.*data\.cache=none"
    ):
        cache.resized(images, SIDE, str(tmp_path / "cache"), 0)


@pytest.mark.parametrize(
    ("encoder_side", "first_resize", "side"),
    [(256, None, 256), (144, None, 256), (288, 256, 288), (256, 288, 288)],
)
def test_copies_are_never_smaller_than_what_is_made_of_them(encoder_side, first_resize, side):
    own = Preprocess(128, encoder_side, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert cache.side_for(own, first_resize) == side
