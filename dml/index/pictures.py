"""Image files as pictures for people: opened within limits, and made small."""

import base64
import io
from pathlib import Path

from PIL import Image

from dml.bundle import MAX_PIXELS
from dml.data.decode import ImageFile, UnreadableImage, to_rgb, unreadable

QUALITY = 80


def open_picture(
    source: Path | bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """A file, or the bytes of one, as RGB; of an animation the first frame, as training reads it.

    formats: names of Pillow's that bytes may be in, None: all.

    Raises UnreadableImage: no image, truncated, or more pixels than `max_pixels`, which its header tells
    before anything is decoded.
    """
    if isinstance(source, Path):
        file = ImageFile(source)
        check_size(file.width, file.height, max_pixels)
        return file.image()
    try:
        with Image.open(io.BytesIO(source), formats=formats) as image:
            check_size(image.width, image.height, max_pixels)
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise unreadable(error) from error


def check_size(width: int, height: int, most: int) -> None:
    """Raise UnreadableImage for more pixels than `most`."""
    if width * height > most:
        raise UnreadableImage(f"{width} x {height} pixels are more than {most}")


def thumbnail(source: Path | bytes, side: int = 240, max_pixels: int = MAX_PIXELS) -> bytes:
    """A JPEG of at most side x side pixels.  Raises UnreadableImage."""
    image, data = open_picture(source, max_pixels), io.BytesIO()
    image.thumbnail((side, side))
    image.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def data_url(source: Path | bytes | None, side: int) -> str:
    """A thumbnail to stand in a page itself; "" where there is no image to read."""
    if source is None:
        return ""
    try:
        return "data:image/jpeg;base64," + base64.b64encode(thumbnail(source, side)).decode()
    except UnreadableImage:
        return ""
