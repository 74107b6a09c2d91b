"""Thumbnails for a page that stays below a size: each image once, the same square the encoder sees."""

import base64
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from dml.data.preprocess import Preprocess

# Side in pixels and WebP quality, best first.
ENTRY = 16  # bytes beside the text of a picture: its number, quotes, a comma
LADDER = ((96, 65), (80, 60), (64, 55), (48, 50), (32, 40))


def thumbnail(path: Path, preprocess: "Preprocess", side: int) -> Image.Image:
    """What the encoder sees of an image, shrunk to `side` pixels; smaller ones stay as they are.

    Raises RunError: it can no longer be read, though it was embedded just before.
    """
    from torchvision.transforms.v2.functional import to_pil_image

    from dml.data.decode import UnreadableImage, open_rgb
    from dml.errors import RunError

    try:
        picture = to_pil_image(preprocess.crop(open_rgb(path)))
    except UnreadableImage as error:
        raise RunError(f"cannot read the image {path} any more ({error}).") from error
    if picture.width > side:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture


def encoded(picture: Image.Image, quality: int) -> str:
    """The picture as the base64 text of a WebP file."""
    data = BytesIO()
    picture.save(data, "WEBP", quality=quality, method=4)
    return base64.b64encode(data.getvalue()).decode()


def fitting(pictures: Sequence[Image.Image], room: int) -> list[str]:
    """Pictures as base64 WebP that together take at most `room` bytes: the best of LADDER that does.

    Where not even the smallest do, as many as there is room for.
    """
    found: list[str] = []
    for side, quality in LADDER:
        found, left = [], room
        for picture in pictures:
            text = encoded(smaller(picture, side), quality)
            left -= len(text) + ENTRY
            if left < 0:
                break
            found.append(text)
        if left >= 0:
            break
    return found


def smaller(picture: Image.Image, side: int) -> Image.Image:
    """The picture with sides of at most `side` pixels."""
    if picture.width <= side:
        return picture
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def thumbnails(
    paths: Sequence[Path],
    sides: Sequence[int],
    preprocess: "Preprocess",
    progress: Callable[[float], None],
) -> list[Image.Image]:
    """`thumbnail` of every path; tells the share that is done."""
    found = []
    for path, side in zip(paths, sides, strict=True):
        found.append(thumbnail(path, preprocess, side))
        progress(len(found) / len(paths))
    return found
