"""What `dml-data show` computes and draws, pixel by pixel where a picture could mislead."""

import logging

import numpy as np
import pytest
from PIL import Image, ImageColor

from dml.data.fetch import pictures
from dml.data.fetch.summary import class_sizes, parts_of, size_histogram
from dml.data.index import ImageIndex

COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 20), (20, 180, 180)]


@pytest.fixture
def index(tmp_path) -> ImageIndex:
    """Five classes of 1, 2, 3, 9 and 12 plain images, one colour a class; the last two are tested."""
    sizes = [1, 2, 3, 9, 12]
    labels = np.repeat(np.arange(5), sizes)
    paths = [f"{n:02}.png" for n in range(len(labels))]
    for path, label in zip(paths, labels, strict=True):
        Image.new("RGB", (8, 8), COLOURS[label]).save(tmp_path / path)
    splits = {"test": np.arange(6, 27), "train": np.arange(6), "val": np.empty(0, np.int64)}
    names = tuple(f"class {c}" for c in range(5))
    return ImageIndex("made", tmp_path, np.array(paths), labels, names, splits)


def test_parts_are_in_order_and_queries_are_told_from_the_gallery(index):
    assert list(parts_of(index)) == ["train", "test"]
    queries = np.arange(27) % 3 == 0
    index = ImageIndex(
        "made",
        index.root,
        index.paths,
        index.labels,
        index.class_names,
        index.splits,
        queries=queries,
    )
    parts = parts_of(index)
    assert list(parts) == ["train", "query", "gallery"]
    assert parts["query"].tolist() == [6, 9, 12, 15, 18, 21, 24]
    assert np.union1d(parts["query"], parts["gallery"]).tolist() == list(range(6, 27))
    assert len(parts["query"]) + len(parts["gallery"]) == 21


@pytest.mark.parametrize("sizes", [[7], [1, 1000], list(range(1, 14)), [2, 2, 3, 60]])
def test_intervals_hold_every_class_once(sizes):
    """Against counting by hand, for one size, for two far apart and for one more than there are rows."""
    found = size_histogram({"train": np.array(sizes), "test": np.array(sizes[:1])})
    assert len(found.intervals) <= 12
    assert (found.intervals[0][0], found.intervals[-1][1]) == (min(sizes), max(sizes))
    for n, (low, high) in enumerate(found.intervals):
        assert found.counts["train"][n] == sum(low <= size <= high for size in sizes)
    assert sum(found.counts["train"]) == len(sizes)
    assert sum(found.counts["test"]) == 1
    assert found.most == max(found.counts["train"])


def test_class_sizes_count_each_part_alone(index):
    parts = parts_of(index)
    assert class_sizes(index, parts["train"]).tolist() == [1, 2, 3]
    assert class_sizes(index, parts["test"]).tolist() == [9, 12]


def centres(sheet: Image.Image, top: int, columns: int) -> list[tuple[int, ...]]:
    """The colours amid the tiles of the row that begins at `top`."""
    middle = pictures.TILE // 2
    step = pictures.TILE + pictures.GAP
    left = pictures.MARGIN + pictures.NAMES
    return [sheet.getpixel((left + c * step + middle, top + middle)) for c in range(columns)]


def rows(sheet: Image.Image) -> list[int]:
    """Where rows of tiles begin: the first column of tiles, from paper to something else."""
    x = pictures.MARGIN + pictures.NAMES + pictures.TILE // 2
    paper = ImageColor.getrgb(pictures.PAPER)
    column = [sheet.getpixel((x, y)) != paper for y in range(sheet.height)]
    long = [all(column[y : y + pictures.TILE]) for y in range(sheet.height)]
    return [y for y in range(1, sheet.height) if long[y] and not long[y - 1]]


def test_a_sheet_has_a_row_for_each_class_and_only_its_images(index):
    sheet = pictures.contact_sheet(index, parts_of(index))
    tops = rows(sheet)
    assert len(tops) == 5
    for label, (top, shown) in enumerate(zip(tops, [1, 2, 3, 8, 8], strict=True)):
        colours = centres(sheet, top, pictures.IMAGES)
        assert colours == [COLOURS[label]] * shown + [(255, 255, 255)] * (pictures.IMAGES - shown)


def test_classes_and_images_are_taken_from_all_not_the_first(index):
    assert pictures.spread(np.arange(100), 4).tolist() == [0, 33, 66, 99]
    assert pictures.spread(np.arange(3), 8).tolist() == [0, 1, 2]
    chosen = pictures.chosen_rows(index, index.splits["test"])
    assert [(label, total) for label, _, total in chosen] == [(3, 9), (4, 12)]
    for label, positions, _ in chosen:
        of_class = np.flatnonzero(index.labels == label)
        assert len(set(positions.tolist())) == 8
        assert (positions[0], positions[-1]) == (of_class[0], of_class[-1])


def test_an_unreadable_image_is_shown_as_one(index, caplog):
    """A sheet that dies of the one image that a person is looking for would be of little use."""
    (index.root / "01.png").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING, "dml"):
        sheet = pictures.contact_sheet(index, parts_of(index))
    assert "cannot read" in caplog.text
    assert "01.png" in caplog.text
    top = rows(sheet)[1]  # class 1: images 01 and 02
    assert centres(sheet, top, 2)[1] == COLOURS[1]
    corner = (pictures.MARGIN + pictures.NAMES + 2, top + pictures.TILE - 2)
    assert sheet.getpixel(corner) == ImageColor.getrgb(pictures.EMPTY)


def test_whole_images_are_shown_whatever_their_shape(tmp_path):
    Image.new("L", (400, 10), 0).save(tmp_path / "wide.png")
    drawn = pictures.tile(tmp_path / "wide.png")
    assert drawn.size == (pictures.TILE, pictures.TILE)
    dark = np.array(drawn.convert("L")) < 50
    assert dark.any(axis=0).all()  # from the left edge to the right one
    assert dark.any(axis=1).sum() <= 4


def test_long_names_stay_in_their_column(index):
    names = ("A" * 300, "W" * 40, *index.class_names[2:])
    long = ImageIndex("made", index.root, index.paths, index.labels, names, index.splits)
    plain, sheet = (pictures.contact_sheet(i, parts_of(i)) for i in (index, long))
    left = pictures.MARGIN + pictures.NAMES - pictures.GAP
    box = (left, 0, sheet.width, sheet.height)
    assert np.array_equal(np.array(plain.crop(box)), np.array(sheet.crop(box)))
    bottom = rows(sheet)[0] + pictures.TILE + pictures.GAP
    names_only = (0, bottom - pictures.GAP, left, bottom)  # between the first two rows
    assert np.array(sheet.crop(names_only)).min() == 255


def test_bars_are_as_long_as_their_counts(index):
    sizes = size_histogram({"train": np.array([1, 1, 1, 1, 2, 2]), "test": np.array([1, 2, 2])})
    drawn = np.array(pictures.histogram(sizes, "made"))
    blue = (drawn == ImageColor.getrgb(pictures.BAR)).all(axis=2)
    lengths = [np.diff(np.flatnonzero(np.diff(np.r_[0, row.astype(int), 0]))) for row in blue]
    found = [tuple(row[::2]) for row in lengths if len(row)]
    first, second = dict.fromkeys(found)
    assert (first, second) == ((261, 66), (131, 131))  # 260 pixels for the largest, and one
