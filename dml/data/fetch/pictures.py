"""Pictures of a data set that a person can judge: a contact sheet, and a histogram of class sizes."""

import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dml.data.fetch.summary import Histogram
from dml.data.index import ImageIndex

log = logging.getLogger("dml")

CLASSES, IMAGES = 8, 8  # rows of a part, images of a row
TILE, GAP, MARGIN = 112, 8, 24  # pixels
NAMES = 220  # width of the column of names
PAPER, INK, FAINT, BAR = "white", "#1a1a1a", "#6b6b6b", "#3b6ea5"
EMPTY = "#ececec"  # beside an image that is not square
TEXT, HEAD = 14, 20  # sizes of type


def contact_sheet(index: ImageIndex, parts: Mapping[str, np.ndarray]) -> Image.Image:
    """Rows of classes, `IMAGES` images each, part by part: whole images, evenly taken from all.

    parts: name -> int64 positions.  An image that cannot be read is an empty tile that says so.
    """
    rows = {name: chosen_rows(index, positions) for name, positions in parts.items()}
    head = HEAD + 2 * GAP
    width = 2 * MARGIN + NAMES + IMAGES * (TILE + GAP)
    height = 2 * MARGIN + sum(head + len(of) * (TILE + GAP) + MARGIN for of in rows.values())
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, y = ImageDraw.Draw(sheet), MARGIN
    for name, of in rows.items():
        classes = len(np.unique(index.labels[parts[name]]))
        title = f"{name}: {len(parts[name]):,} images of {classes:,} classes"
        draw.text((MARGIN, y), title, INK, font(HEAD))
        y += head
        for label, positions, total in of:
            write_name(draw, (MARGIN, y), index.class_names[label], total)
            for column, position in enumerate(positions):
                x = MARGIN + NAMES + column * (TILE + GAP)
                sheet.paste(tile(index.root / index.paths[position]), (x, y))
            y += TILE + GAP
        y += MARGIN
    return sheet


def chosen_rows(index: ImageIndex, positions: np.ndarray) -> list[tuple[int, np.ndarray, int]]:
    """(label, positions of its images shown, number of its images), for classes evenly taken from all."""
    labels = index.labels[positions]
    rows = []
    for label in spread(np.unique(labels), CLASSES):
        of_class = positions[labels == label]
        rows.append((int(label), spread(of_class, IMAGES), len(of_class)))
    return rows


def spread(items: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the items, evenly, with the first and the last."""
    return items[np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def tile(path: Path) -> Image.Image:
    """An image as training sees it, whole, on a square tile."""
    from dml.data.decode import UnreadableImage, open_rgb  # imports torch: not before it is needed

    try:
        return ImageOps.pad(open_rgb(path), (TILE, TILE), color=EMPTY)
    except UnreadableImage as error:
        log.warning("cannot read %s (%s)", path, error)
        empty = Image.new("RGB", (TILE, TILE), EMPTY)
        ImageDraw.Draw(empty).text((GAP, GAP), "unreadable", FAINT, font(TEXT))
        return empty


def write_name(draw: ImageDraw.ImageDraw, at: tuple[int, int], name: str, total: int) -> None:
    """A class's name, on as many lines as it needs, and its number of images."""
    lines, line = [], ""
    for letter in name:
        if draw.textlength(line + letter, font(TEXT)) > NAMES - 2 * GAP:
            lines.append(line)
            line = ""
        line += letter
    lines = [*lines, line][:4]
    x, y = at
    for line in lines:
        draw.text((x, y), line, INK, font(TEXT))
        y += TEXT + 4
    draw.text((x, y), f"{total} image{'s' if total != 1 else ''}", FAINT, font(TEXT))


def histogram(sizes: Histogram, name: str) -> Image.Image:
    """Bars: how many classes have how many images, part beside part."""
    row, column, first = TEXT + 12, 360, 110
    height = 2 * MARGIN + HEAD + 3 * GAP + TEXT + len(sizes.intervals) * row + MARGIN
    picture = Image.new("RGB", (2 * MARGIN + first + column * len(sizes.counts), height), PAPER)
    draw, top = ImageDraw.Draw(picture), MARGIN + HEAD + 2 * GAP
    draw.text((MARGIN, MARGIN), f"{name}: classes by their number of images", INK, font(HEAD))
    draw.text((MARGIN, top), "images", FAINT, font(TEXT))
    for line, label in enumerate(sizes.labels(), 1):
        draw.text((MARGIN, top + line * row), label, INK, font(TEXT))
    for number, (part, counts) in enumerate(sizes.counts.items()):
        x = MARGIN + first + number * column
        draw.text((x, top), f"{part}: {sum(counts):,} classes", FAINT, font(TEXT))
        for line, count in enumerate(counts, 1):
            y = top + line * row
            long = round(count / sizes.most * (column - 100))
            if count:
                draw.rectangle((x, y, x + max(long, 1), y + TEXT + 3), BAR)
                draw.text((x + long + GAP, y), f"{count:,}", INK, font(TEXT))
    return picture


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface, the same on every machine."""
    return ImageFont.load_default(size)


def png(picture: Image.Image) -> bytes:
    """The picture as the content of a PNG file."""
    content = BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
