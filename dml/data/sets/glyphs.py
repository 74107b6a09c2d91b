"""The embedded default data set: characters of an invented script, drawn at first use.

200 classes x 20 images, 64 x 64 grey PNG files; whole classes are train (100), val (20) or test (80).
A character is two to four strokes, each a smooth or angular line through a few knots, or a ring.
Every image draws it anew: its own hand (knots moved), rotation, slant, size, place, pen, ink, paper,
light and grain.

The pixels are the same on every machine: `random.Random.random` with integer seeds, the four basic
operations of IEEE arithmetic (no sine, no matrix product whose order of summation is a library's
choice) and, from the first point that is rounded to a pixel on, integers.  Pillow only writes and reads
the files: its own lines and ellipses have changed between versions.  `FINGERPRINT` is the SHA-256 of
all pixels and is checked whenever the set is drawn.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import PIL
from PIL import Image
from platformdirs import user_cache_dir

from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, Problem, RunError

CLASSES = {"train": 100, "val": 20, "test": 80}
IMAGES_PER_CLASS = 20
SIZE = 64
FINGERPRINT = "10d26679592f56ea11b6fb14e48cdedafeab0696a84683d242c0e321efb4fd14"

# How much the images of a class differ.  Nearest neighbour on raw pixels finds the right class for
# about a quarter (cosine) to four tenths (cosine after subtracting the mean) of the test images.
HALF_TANGENT = 0.14  # rotation: tangent of half the largest angle (16 degrees)
SLANT = 0.3  # horizontal shift per height
SCALE = (0.44, 0.74)  # width and height of the character's square, each a share of the picture
SHIFT = 0.09  # of the centre, a share of the picture
KNOT_SHIFT = 0.09  # of each knot, a share of the character's square
PEN = (4, 10)  # radius in quarters of a pixel
DARK, LIGHT = (0, 90), (165, 255)  # ink and paper, grey values
SLOPE = 40  # of the light across the picture, grey values
GRAIN = 30  # largest amplitude of the noise, grey values

_SEED = 20_190_412
_FULL = 4 * SIZE  # drawn four times as large, then averaged
_SAMPLES = 48  # points per piece of a stroke: close enough that the pen leaves no gaps
_LATTICE = (0.0, 0.33, 0.67, 1.0)  # where the knots of a character lie before a hand moves them
_KINDS = ("smooth",) * 5 + ("angular",) * 3 + ("ring",)
_RING = (
    *((0.0, -1.0), (0.7, -0.7), (1.0, 0.0), (0.7, 0.7)),
    *((0.0, 1.0), (-0.7, 0.7), (-1.0, 0.0), (-0.7, -0.7)),
)

Knot = tuple[float, float]  # x, y; y points down
Stroke = tuple[str, list[Knot]]  # "smooth", "angular" or "ring", and its knots


def load(*, name: str = "glyphs", root: str | None = None) -> ImageIndex:
    """The glyphs under `root` (None: the user's cache directory), drawn there if they are not yet.

    Drawing takes some seconds, once.  Raises ConfigurationError if `root` cannot be written or what
    is there is incomplete, RunError if this machine draws other pixels than `FINGERPRINT` says.
    """
    parent = Path(root).expanduser() if root else Path(user_cache_dir("dml", appauthor=False))
    where = f"data.root={root}" if root else f"data={name}"
    directory = (parent / f"glyphs-{FINGERPRINT[:8]}").absolute()
    if not directory.is_dir():
        try:
            written_aside(directory, draw_all)
        except OSError as error:
            raise ConfigurationError(
                [
                    Problem(
                        where,
                        f"the glyphs cannot be written to {parent} ({error.strerror or error}).\n"
                        "Give a directory that can be written: data.root=DIR",
                    )
                ]
            ) from error
    total = sum(CLASSES.values())
    class_names = tuple(f"glyph{number:03}" for number in range(total))
    paths = [f"{c}/{copy:02}.png" for c in class_names for copy in range(IMAGES_PER_CLASS)]
    labels = np.repeat(np.arange(total, dtype=np.int64), IMAGES_PER_CLASS)
    require_complete(directory, paths, where)
    bounds = np.cumsum([0, *CLASSES.values()]) * IMAGES_PER_CLASS
    splits = {
        split: np.arange(start, stop, dtype=np.int64)
        for split, (start, stop) in zip(CLASSES, pairwise(bounds), strict=True)
    }
    return ImageIndex(name, directory, np.array(paths), labels, class_names, splits)


def draw_all(directory: Path) -> None:
    """Draw all images into `directory`, class by class, with a progress bar.

    Raises RunError if the pixels are not those of `FINGERPRINT`.
    """
    from rich.console import Console
    from rich.progress import track

    digest = hashlib.sha256()
    numbers = track(
        range(sum(CLASSES.values())),
        description="Drawing the glyphs (once)",
        console=Console(stderr=True),
        transient=True,
    )
    for number in numbers:
        folder = directory / f"glyph{number:03}"
        folder.mkdir()
        for copy in range(IMAGES_PER_CLASS):
            path = folder / f"{copy:02}.png"
            Image.fromarray(image(number, copy)).save(path, compress_level=1)  # speed
            with Image.open(path) as file:  # what a reader will see, not what was meant
                digest.update(np.asarray(file, dtype=np.uint8).tobytes())
    if digest.hexdigest() != FINGERPRINT:
        raise RunError(
            f"The glyphs drawn here are not those of other machines: fingerprint "
            f"{digest.hexdigest()[:16]}..., not {FINGERPRINT[:16]}... (Pillow {PIL.__version__}, "
            f"NumPy {np.__version__}).\nResults on them would not be comparable, so they were "
            "removed. Install another version of the two and run again."
        )


def written_aside(directory: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a directory beside `directory`, then rename it: all of it or nothing.

    Two processes may do so at once; the first to finish wins.  What a killed process left aside is
    removed after a day.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{directory.name}-unfinished-"
    for left in directory.parent.glob(f"{prefix}*"):
        if time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    try:
        fill(aside)
        aside.chmod(0o755)  # mkdtemp's own mode lets nobody else read
        try:
            aside.rename(directory)
        except OSError:
            if not directory.is_dir():  # not merely another process that was faster
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_complete(directory: Path, paths: list[str], where: str) -> None:
    """Raise ConfigurationError if files of a set that we wrote ourselves are gone."""
    present = {
        f"{folder.name}/{file.name}"
        for folder in directory.iterdir()
        if folder.is_dir()
        for file in os.scandir(folder)
    }
    gone = [path for path in paths if path not in present]
    if gone:
        raise ConfigurationError(
            [
                Problem(
                    where,
                    f"{len(gone)} of {len(paths)} images are missing from {directory}, "
                    f"{gone[0]} first.\nRemove that directory; it is written anew at the next run.",
                )
            ]
        )


@lru_cache(maxsize=1)
def character(number: int) -> list[Stroke]:
    """Strokes of one class, their knots in a unit square about (0, 0)."""
    rng = Random(_SEED + 1_000_003 * number)
    while True:
        strokes = _attempt(rng)
        xs, ys = zip(*(knot for _, knots in strokes for knot in knots), strict=True)
        width, height = max(xs) - min(xs), max(ys) - min(ys)
        corners = sum(len(knots) for kind, knots in strokes if kind != "ring")
        # Neither a mere tick nor a scribble: about as much to see in every character.
        if min(width, height) > 0.4 and max(width, height) > 0.6 and 5 <= corners <= 8:
            x0, y0 = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
            return [(kind, [(x - x0, y - y0) for x, y in knots]) for kind, knots in strokes]


def image(number: int, copy: int) -> np.ndarray:
    """One drawing of class `number`: uint8 [64, 64], dark ink on light paper."""
    rng = Random(_SEED + 1_000_003 * number + 7_919 * (copy + 1))
    # The hand: an affine map of the character's square into the oversampled picture.
    half = _between(rng, -HALF_TANGENT, HALF_TANGENT)
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    slant = _between(rng, -SLANT, SLANT)
    width, height = _FULL * _between(rng, *SCALE), _FULL * _between(rng, *SCALE)
    x0 = _FULL * (0.5 + _between(rng, -SHIFT, SHIFT))
    y0 = _FULL * (0.5 + _between(rng, -SHIFT, SHIFT))
    pen = int(_between(rng, *PEN))
    points = []
    for kind, knots in character(number):
        reach = KNOT_SHIFT * (0.3 if kind == "ring" else 1.0)  # rings stay rings
        moved = []
        for knot_x, knot_y in knots:
            x = knot_x + _between(rng, -reach, reach)
            y = knot_y + _between(rng, -reach, reach)
            x, y = width * (x + slant * y), height * y
            moved.append((x0 + cosine * x - sine * y, y0 + sine * x + cosine * y))
        points.append(_trace(kind, moved))
    fine = _stamp(np.floor(np.concatenate(points) + 0.5).astype(np.int64), pen)
    rows = fine[0::4] + fine[1::4] + fine[2::4] + fine[3::4]
    inked = rows[:, 0::4] + rows[:, 1::4] + rows[:, 2::4] + rows[:, 3::4]  # of 16 fine pixels
    inked = inked.astype(np.int64)
    ink, paper = int(_between(rng, *DARK)), int(_between(rng, *LIGHT))
    grey = (paper * (16 - inked) + ink * inked) // 16
    across, down = (int(_between(rng, -SLOPE, SLOPE)) for _ in range(2))
    line = np.arange(SIZE, dtype=np.int64) - SIZE // 2
    grey += (across * line[None, :] + down * line[:, None]) // SIZE
    amplitude = 1 + int(GRAIN * rng.random())
    grey += (_grain(rng) * amplitude) // 128
    return np.clip(grey, 0, 255).astype(np.uint8)


def _attempt(rng: Random) -> list[Stroke]:
    strokes: list[Stroke] = []
    seen: list[Knot] = []
    for _ in range(2 + _below(rng, 3)):
        start = _LATTICE[_below(rng, 4)], _LATTICE[_below(rng, 4)]
        if seen and rng.random() < 0.6:  # the strokes of a character mostly touch
            start = seen[_below(rng, len(seen))]
        kind = _KINDS[_below(rng, len(_KINDS))]
        if kind == "ring":
            radius, flat = 0.13 + 0.1 * rng.random(), 0.7 + 0.6 * rng.random()
            knots = [(start[0] + radius * x, start[1] + radius * flat * y) for x, y in _RING]
        else:
            knots = [start]
            for _ in range(1 + _below(rng, 3)):
                knots.append(_next_knot(rng, knots))
            seen += knots
        strokes.append((kind, knots))
    return strokes


def _next_knot(rng: Random, knots: list[Knot]) -> Knot:
    """A lattice point new to this stroke, mostly along a row, a column or a diagonal."""
    x, y = knots[-1]
    while True:
        point = _LATTICE[_below(rng, 4)], _LATTICE[_below(rng, 4)]
        across, down = abs(point[0] - x), abs(point[1] - y)
        along_a_line = across < 0.1 or down < 0.1 or abs(across - down) < 0.1
        if point not in knots and (along_a_line or rng.random() < 0.25):
            return point


def _below(rng: Random, n: int) -> int:
    return int(rng.random() * n)


def _between(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _trace(kind: str, knots: list[Knot]) -> np.ndarray:
    """Points along a stroke, float64 [m, 2] as (row, column)."""
    p = np.array([(y, x) for x, y in knots])
    t = (np.arange(_SAMPLES) / _SAMPLES)[None, :, None]
    if kind == "ring":
        before, start, stop, after = (np.roll(p, shift, axis=0) for shift in (1, 0, -1, -2))
    else:
        before, start = np.concatenate([p[:1], p[:-2]]), p[:-1]
        stop, after = p[1:], np.concatenate([p[2:], p[-1:]])
    before, start, stop, after = (q[:, None, :] for q in (before, start, stop, after))
    if kind == "angular":
        pieces = start + t * (stop - start)
    else:  # Catmull-Rom: a smooth curve through all knots
        pieces = (
            start
            + 0.5 * t * (stop - before)
            + t * t * (before - 2.5 * start + 2.0 * stop - 0.5 * after)
            + t * t * t * (1.5 * (start - stop) + 0.5 * (after - before))
        )
    return pieces.reshape(-1, 2)


def _stamp(points: np.ndarray, pen: int) -> np.ndarray:
    """uint8 [256, 256]: 1 where a round pen has been; `points` int64 [m, 2], radius `pen`."""
    margin = 2 * pen  # so that no index needs clipping
    side = _FULL + 2 * margin
    near = ((points >= -pen) & (points < _FULL + pen)).all(axis=1)
    points = points[near] + margin
    centres = np.unique(points[:, 0] * side + points[:, 1])
    reach = np.arange(-pen, pen + 1)
    dy, dx = np.nonzero(reach[:, None] ** 2 + reach[None, :] ** 2 <= pen * pen)
    canvas = np.zeros(side * side, dtype=np.uint8)
    canvas[centres[:, None] + (dy - pen) * side + dx - pen] = 1
    return canvas.reshape(side, side)[margin:-margin, margin:-margin]


def _grain(rng: Random) -> np.ndarray:
    """Noise int64 [64, 64] in -128..127, from the raw output of PCG64, which NumPy keeps frozen."""
    raw = np.random.PCG64(int(rng.random() * 2**53)).random_raw(SIZE * SIZE // 8)
    return raw.astype("<u8").view(np.uint8).astype(np.int64).reshape(SIZE, SIZE) - 128
