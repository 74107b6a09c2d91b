"""What page and API do alike: an image or a row in, the nearest and their pictures out."""

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from dml.data.decode import UnreadableImage, unreadable
from dml.index.hits import Hit, Item
from dml.index.pictures import open_picture, thumbnail
from dml.index.searchable import Searchable
from dml.serve.batching import Batcher
from dml.serve.options import Options

# What uploads may be: the formats of training, and none that starts other programs (EPS runs Ghostscript).
WANTED = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM")
Image.init()
FORMATS = tuple(name for name in WANTED if name in Image.OPEN)  # AVIF: not in every build of Pillow
SIDE = 240  # pixels of the longer side of a thumbnail
KEPT = 2048  # thumbnails in memory, some 10 kB each
LAST_ROW = 2**63 - 1
T = TypeVar("T")


class NotFound(Exception):
    """There is no such image."""


class UnknownLabel(Exception):
    """There is no such class."""


@dataclass(frozen=True)
class Picture:
    """The bytes of an image for a browser; etag changes when they do."""

    data: bytes
    media_type: str
    etag: str


class Service:
    """An index with its encoder, for many requests at a time.

    Decoding and searching happen in a few threads, so that a handful of images at most are decoded at
    once; embedding in one, in batches.
    """

    def __init__(self, index: Searchable, encoder: Any, options: Options):
        index.check_encoder(encoder)
        self.index, self.encoder, self.options = index, encoder, options
        self.labels = {readable(label): label for label in index.labels}
        self.pool = ThreadPoolExecutor(os.cpu_count() or 2, thread_name_prefix="request")
        self.batcher = Batcher(
            encoder.embed_pixels, options.max_batch, options.batch_wait_ms / 1000
        )
        self._thumbnail = lru_cache(KEPT)(self._make_thumbnail)

    def close(self) -> None:
        """End the threads."""
        self.batcher.close()
        self.pool.shutdown(cancel_futures=True)

    async def in_thread(self, function: Callable[..., T], *values: Any) -> T:
        """A blocking function, in one of the service's threads."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *values)

    # -- searching

    async def by_upload(self, data: bytes, k: int, label: str | None) -> list[Hit]:
        """The images nearest to an uploaded one.  Raises UnreadableImage, UnknownLabel, Closed."""
        where = self.label(label)
        pixels = await self.in_thread(self._pixels, data)
        vector = await asyncio.wrap_future(self.batcher.submit(pixels))
        return await self.in_thread(self._hits, vector[None], k, where, None)

    async def by_row(self, row: int, k: int, label: str | None) -> list[Hit]:
        """The images nearest to an indexed one, itself left out.  Raises NotFound, UnknownLabel."""
        return await self.in_thread(self._similar, row, k, self.label(label))

    def label(self, name: str | None) -> str | None:
        """The class of the index that is shown as `name`; None for None and for the empty text."""
        if not name:
            return None
        if name not in self.labels:
            raise UnknownLabel(f"There is no class {name!r} in this index.")
        return self.labels[name]

    def item(self, row: int) -> Item:
        """An indexed image.  Raises NotFound.  Blocks, as the index may be kept by a server."""
        try:
            if not 0 <= row <= LAST_ROW:
                raise ValueError("out of range")
            return self.index.items([row])[0]
        except ValueError as error:
            raise NotFound(f"There is no image number {row} in this index.") from error

    def some(self, count: int) -> list[Item]:
        """Images from all over the index, to begin with; fewer where some were removed.  Blocks."""
        found = []
        for row in np.unique(np.linspace(0, len(self.index) - 1, count).astype(int)):
            try:
                found.append(self.item(int(row)))
            except NotFound:
                continue
        return found

    def _pixels(self, data: bytes) -> Any:
        image = open_picture(data, self.options.max_pixels, FORMATS)
        short, long = sorted(image.size)
        if self.encoder.preprocess.resize**2 * long > self.options.max_pixels * short:
            # its shorter side is to be enlarged: 1 x 1,000,000 pixels would become gigabytes
            raise UnreadableImage(f"{image.width} x {image.height} pixels are too narrow")
        return self.encoder.pixels(image)

    def _similar(self, row: int, k: int, where: str | None) -> list[Hit]:
        self.item(row)
        return self._hits(self.index.vectors([row]), k, where, np.array([row]))

    def _hits(
        self, vectors: np.ndarray, k: int, where: str | None, exclude: np.ndarray | None
    ) -> list[Hit]:
        return self.index.hits(vectors, k, where, exclude)[0]

    # -- pictures

    async def picture(self, row: int, full: bool) -> Picture:
        """An indexed image, small or as its file has it.  Raises NotFound: no such row, or no file.

        The file is the index's own: a row is all that a request can say.
        """
        file = (await self.in_thread(self.item, row)).file
        if file is None:
            raise NotFound(f"The file of image number {row} is gone.")
        try:
            if full:
                return await self.in_thread(self._whole, file)
            return await self.in_thread(self._small, file)
        except (UnreadableImage, OSError) as error:
            raise NotFound(f"The file of image number {row} can no longer be read.") from error

    def _small(self, file: Path) -> Picture:
        """A thumbnail, from memory where the file has not changed since."""
        return self._thumbnail(file, file.stat().st_mtime_ns)

    def _make_thumbnail(self, file: Path, _changed: int) -> Picture:
        data = thumbnail(file, SIDE)
        return Picture(data, "image/jpeg", tag(data))

    def _whole(self, file: Path) -> Picture:
        data = file.read_bytes()
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as image:  # reads the header alone
                # several JPEGs in a file (MPO, of some cameras): browsers show the first
                kind = Image.MIME["JPEG" if image.format == "MPO" else str(image.format)]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise unreadable(error) from error
        return Picture(data, kind, tag(data))

    async def upload_as_data_url(self, data: bytes) -> str:
        """A thumbnail of an upload that could be read, to stand in the page itself."""
        jpeg = await self.in_thread(thumbnail, data, SIDE, self.options.max_pixels)
        return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def tag(data: bytes) -> str:
    """An ETag."""
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def readable(name: str) -> str:
    """A name that is valid Unicode: bytes of a file name that are no UTF-8 are written as \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()
