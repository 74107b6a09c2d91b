"""What is odd about one image file, and what tells it from other images."""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from rich.console import Console
from rich.progress import track

from dml.errors import RunError

TINY = 32  # pixels of the shorter side
ELONGATED = 4  # longer side / shorter side
GIGANTIC = 25_000_000  # pixels
HASH_SIDE = 16  # of the perceptual hash, in bits
SMALL_SIDE = 16  # of the picture that confirms it, in pixels
GREYSCALE = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")
FEW = 256  # images that are not worth the start of processes
CHUNK = 16  # images that a process takes at a time


@dataclass(frozen=True)
class Facts:
    """One file.

    defects: (kind, detail), the kinds of `doctor_findings.KINDS`.  format: as Pillow calls it.
    file_digest, pixel_digest: SHA-256 of the bytes, and of the RGB pixels with their size.
    phash: HASH_SIDE ** 2 bits, DCT signs of the grey picture (imagehash.phash).
    small: SMALL_SIDE ** 2 * 3 bytes, the RGB picture.
    Where the pixels cannot be read, there is nothing but defects.
    """

    defects: tuple[tuple[str, str], ...]
    format: str = ""
    file_digest: bytes = b""
    pixel_digest: bytes = b""
    phash: bytes = b""
    small: bytes = b""

    @property
    def readable(self) -> bool:
        """Whether training can read it."""
        return bool(self.pixel_digest)


def examine_all(paths: Sequence[Path], workers: int) -> list[Facts]:
    """Examine files in `workers` processes, with a progress bar on stderr where that is a terminal.

    Raises RunError if a process is killed.
    """
    if workers == 1 or len(paths) < FEW:
        return list(shown_progress(map(examine, paths), len(paths)))
    with ProcessPoolExecutor(workers) as executor:
        results = executor.map(examine, paths, chunksize=CHUNK)  # forks, so before the bar's thread
        try:
            return list(shown_progress(results, len(paths)))
        except BrokenProcessPool as error:
            raise RunError(
                "a process that decodes images was killed, perhaps for want of memory.\n"
                "Look for gigantic files, or run it where there is more."
            ) from error


def shown_progress(results: Iterable[Facts], total: int) -> Iterable[Facts]:
    """The results as they come, and a bar that counts them."""
    console = Console(stderr=True)
    return track(
        results,
        description="Reading the images",
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def examine(path: Path) -> Facts:
    """Read one file as training does, and look at what was lost on the way."""
    import imagehash  # with scipy, slow to import

    from dml.data.decode import open_rgb  # imports torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on sizes and metadata: reported here
        try:
            data = path.read_bytes()
        except OSError as error:
            return Facts((("unreadable", error.strerror or str(error)),))
        # A decoder may raise anything on a damaged file, and none of it may stop the doctor.
        try:
            rgb = open_rgb(path)
        except Exception as error:
            return Facts((why_unreadable(data, error),))
        try:
            format, defects = oddities(data, path.suffix)
        except Exception as error:
            format, defects = "", [("metadata", f"{type(error).__name__}: {error}")]
    defects += size_defects(*rgb.size)
    lowest, highest = zip(*rgb.getextrema(), strict=True)
    if lowest == highest:
        defects.append(("blank", f"every pixel is {lowest}"))
    small = rgb.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX)
    return Facts(
        tuple(defects),
        format,
        hashlib.sha256(data).digest(),
        hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).digest(),
        np.packbits(imagehash.phash(rgb, HASH_SIDE).hash).tobytes(),
        small.tobytes(),
    )


def why_unreadable(data: bytes, error: Exception) -> tuple[str, str]:
    """Kind and detail of a file whose pixels cannot be decoded."""
    if not data:
        return "unreadable", "the file is empty"
    try:
        with Image.open(BytesIO(data)) as image:
            return "truncated", f"{image.format}, {image.width} x {image.height}: {error}"
    except Image.UnidentifiedImageError:
        return "unreadable", f"no image; it begins with {data[:24]!r}"
    except Exception as other:
        return "unreadable", f"{type(other).__name__}: {other}"


def oddities(data: bytes, suffix: str) -> tuple[str, list[tuple[str, str]]]:
    """The format, and what reading as RGB ignores or changes."""
    found = []
    with Image.open(BytesIO(data)) as image:
        mode, format = image.mode, str(image.format)
        expected = Image.registered_extensions().get(suffix.lower())
        same = "JPEG" if format == "MPO" else format  # a JPEG with a second picture behind it
        if expected != same:
            found.append(("wrong_extension", f"{format} content, extension {suffix or 'none'}"))
        if mode in GREYSCALE:
            found.append(("greyscale", f"mode {mode}"))
        if mode == "CMYK":
            found.append(("cmyk", f"mode {mode}"))
        if mode in ("P", "PA"):
            found.append(("palette", f"mode {mode}"))
        deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        if deep or mode in ("I", "F"):
            found.append(("sixteen_bit", f"mode {mode}"))
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and format != "MPO":
            found.append(("animated", f"{frames} frames"))
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in range(2, 9) and format != "TIFF":  # Pillow itself turns TIFF
            found.append(("exif_rotated", f"EXIF orientation {orientation}"))
        if image.has_transparency_data:
            opaque = image.convert("RGBA").getchannel("A").histogram()[255]
            if opaque < image.width * image.height:
                share = 1 - opaque / (image.width * image.height)
                found.append(("transparent", f"{share:.0%} of its pixels"))
    return format, found


def size_defects(width: int, height: int) -> list[tuple[str, str]]:
    """Extreme sizes."""
    found, shorter, longer = [], min(width, height), max(width, height)
    detail = f"{width} x {height}"
    if shorter < TINY:
        found.append(("tiny", detail))
    if longer > ELONGATED * shorter:
        found.append(("elongated", f"{detail}, {longer / shorter:.1f} : 1"))
    if width * height > GIGANTIC:
        found.append(("gigantic", f"{detail}, {width * height / 1e6:.0f} megapixels"))
    return found
