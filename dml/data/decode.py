"""Image files as RGB pixels: those that Pillow gives, with no more work than is needed.

A JPEG that is to be shrunk to half its size or less is decoded at 1/2, 3/8, 1/4 or 1/8 (scaled inverse
DCT, Pillow's draft mode).  JPEGs go through libjpeg-turbo by way of simplejpeg, whose pixels equal
Pillow's bit for bit at every scale, in less time; what it does not take (CMYK, damaged files) and every
other format is Pillow's.

Whatever the mode, the result is RGB: grey-scale, palette and CMYK are converted, 16 bits become 8,
transparency is dropped.  EXIF rotation is ignored, as in the data sets' published results.
"""

import errno
import math
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

JPEG = b"\xff\xd8\xff"
TURBO_COLORS = ("Gray", "YCbCr", "RGB")


class UnreadableImage(Exception):
    """The file is no image, is truncated or is gone; the text gives the reason."""


class ImageFile:
    """An image file whose header is read at once and whose pixels are decoded when asked for.

    height, width: of the whole image, in pixels.

    Raises UnreadableImage, here and from the methods.
    """

    def __init__(self, path: Path):
        self._is_plain_jpeg = False
        try:
            self._data = path.read_bytes()
            if self._data.startswith(JPEG):
                self._read_jpeg_header()
            if not self._is_plain_jpeg:
                with Image.open(BytesIO(self._data)) as image:
                    self.width, self.height = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise unreadable(error) from error

    def _read_jpeg_header(self) -> None:
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(self._data)
        except ValueError:
            return  # Pillow forgives more
        self.height, self.width = int(height), int(width)
        small = self.height * self.width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        self._is_plain_jpeg = colors in TURBO_COLORS and small  # else Pillow's to refuse

    def image(self) -> Image.Image:
        """The whole image as RGB, as Pillow decodes it."""
        try:
            with Image.open(BytesIO(self._data)) as image:
                return to_rgb(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise unreadable(error) from error

    def pixels(self, factor: float = 1.0) -> Tensor:
        """The whole image as uint8 [3, h, w], perhaps smaller: h >= factor * height, likewise w.

        factor: how much of each side is needed; 1 and above: the full size, equal to `image()`.
        """
        if self._is_plain_jpeg:
            least = {}
            if factor <= 0.5:
                least["min_height"] = math.ceil(factor * self.height)
                least["min_width"] = math.ceil(factor * self.width)
            try:
                array = simplejpeg.decode_jpeg(self._data, "RGB", min_factor=2, **least)
            except ValueError:  # damaged: Pillow reads it, or says what is wrong
                self._is_plain_jpeg = False
            else:
                return torch.from_numpy(array).permute(2, 0, 1)
        return torch.from_numpy(np.array(self.image())).permute(2, 0, 1)


def open_rgb(path: Path) -> Image.Image:
    """The whole image as RGB, as Pillow decodes it; see the module for other modes.

    Raises UnreadableImage.
    """
    return ImageFile(path).image()


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as RGB.

    Raises what Pillow's decoder raises, if the image is yet to be loaded.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.point(lambda value: value / 256).convert("L")  # 16 bits to 8
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def unreadable(error: Exception) -> UnreadableImage:
    """What a decoder raised, as the error of this module.  Raises what is no fault of the file."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error
    if isinstance(error, UnidentifiedImageError):
        return UnreadableImage("UnidentifiedImageError: no image of a known format")
    return UnreadableImage(f"{type(error).__name__}: {error}")
