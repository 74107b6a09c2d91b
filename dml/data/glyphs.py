"""The embedded default data set: characters of an invented script, drawn at first use.

200 classes x 20 images, 64 x 64 grey PNG files; whole classes are train (100), val (20) or test (80).
A character is two to four strokes, each a smooth or angular line through a few knots.  Every image
draws it anew: its own hand (knots moved), rotation, slant, size, place, pen, ink, paper and grain.

The pixels are the same on every machine: `random.Random.random` with integer seeds, the four basic
operations of IEEE arithmetic (no sine, no matrix product whose order of summation is a library's
choice) and, from the first point that is rounded to a pixel on, integers.  Pillow only writes and reads
the files.  `FINGERPRINT` is the SHA-256 of all pixels and is checked whenever the set is drawn.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, Problem, RunError

CLASSES = {"train": 100, "val": 20, "test": 80}
IMAGES_PER_CLASS = 20
SIZE = 64
FINGERPRINT = ""

_SEED = 20_190_412
_OVERSAMPLING = 4
_SAMPLES = 48  # points drawn per piece of a stroke, close enough that the pen leaves no gaps
_LATTICE = (0.0, 0.33, 0.67, 1.0)  # where the knots of a character lie before a hand moves them
_RING = (
    (0.0, -1.0),
    (0.7, -0.7),
    (1.0, 0.0),
    (0.7, 0.7),
    (0.0, 1.0),
    (-0.7, 0.7),
    (-1.0, 0.0),
    (-0.7, -0.7),
)
_KINDS = ("smooth",) * 5 + ("angular",) * 3 + ("ring",)

Stroke = tuple[str, list[tuple[float, float]]]  # "smooth", "angular" or "ring", and its knots


def character(number: int) -> list[Stroke]:
    """Strokes of one class: knots as (x, y) in a unit square about 0, y down."""
    rng = Random(_SEED + 1_000_003 * number)
    while True:
        strokes = _attempt(rng)
        xs, ys = zip(*(knot for _, knots in strokes for knot in knots), strict=True)
        width, height = max(xs) - min(xs), max(ys) - min(ys)
        corners = sum(len(knots) for kind, knots in strokes if kind != "ring")
        # Neither a mere tick nor a scribble: about as much to see in every character.
        if min(width, height) > 0.4 and max(width, height) > 0.6 and 5 <= corners <= 8:
            middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
            return [
                (kind, [(x - middle_x, y - middle_y) for x, y in knots]) for kind, knots in strokes
            ]


def _attempt(rng: Random) -> list[Stroke]:
    strokes: list[Stroke] = []
    seen: list[tuple[float, float]] = []
    for _ in range(2 + _below(rng, 3)):
        start = _LATTICE[_below(rng, 4)], _LATTICE[_below(rng, 4)]
        if seen and rng.random() < 0.6:  # strokes of a character mostly touch
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


def _next_knot(rng: Random, knots: list[tuple[float, float]]) -> tuple[float, float]:
    """A lattice point the pen has not touched in this stroke, along a row, a column or a diagonal."""
    x, y = knots[-1]
    while True:
        point = _LATTICE[_below(rng, 4)], _LATTICE[_below(rng, 4)]
        across, down = abs(point[0] - x), abs(point[1] - y)
        along_a_line = across < 0.1 or down < 0.1 or abs(across - down) < 0.1
        if point not in knots and (along_a_line or rng.random() < 0.25):
            return point


def image(number: int, copy: int) -> np.ndarray:
    """One drawing of class `number`: uint8 [64, 64], ink darker or lighter than the paper."""
    rng = Random(_SEED + 1_000_003 * number + 7_919 * (copy + 1))
    full = SIZE * _OVERSAMPLING
    # The hand: an affine map of the unit square, about its centre, into the oversampled picture.
    half_tangent = _between(
        rng, -HARD["rot"], HARD["rot"]
    )  # of half the angle: rotation without sine
    square = half_tangent * half_tangent
    cosine, sine = (1 - square) / (1 + square), 2 * half_tangent / (1 + square)
    slant = _between(rng, -HARD["slant"], HARD["slant"])
    width = full * _between(rng, *HARD["scale"])
    height = full * _between(rng, *HARD["scale"])
    centre_x = full * (0.5 + _between(rng, -HARD["shift"], HARD["shift"]))
    centre_y = full * (0.5 + _between(rng, -HARD["shift"], HARD["shift"]))
    pen = int(_between(rng, *HARD["pen"]))
    jit = HARD["jit"]
    points = []
    for kind, knots in character(number):
        moved = []
        for x, y in knots:
            x = x + _between(rng, -jit, jit) * (0.3 if kind == "ring" else 1)
            y = y + _between(rng, -jit, jit) * (0.3 if kind == "ring" else 1)
            x, y = width * (x + slant * y), height * y
            moved.append((centre_x + cosine * x - sine * y, centre_y + sine * x + cosine * y))
        points.append(_trace(kind, moved))
    rows_and_columns = np.floor(np.concatenate(points) + 0.5).astype(np.int64)
    covered = _stamp(rows_and_columns, pen, full)
    # 0..16 covered fine pixels per pixel, then grey values in integers.
    coverage = covered.reshape(SIZE, _OVERSAMPLING, SIZE, _OVERSAMPLING).sum(
        axis=(1, 3), dtype=np.int64
    )
    dark, light = int(_between(rng, *HARD["dark"])), int(_between(rng, *HARD["light"]))
    paper, ink = (light, dark) if rng.random() >= HARD["invert"] else (dark, light)
    grey = (paper * (16 - coverage) + ink * coverage) // 16
    # A slope of the light across the paper.
    across, down = (
        int(_between(rng, -HARD["slope"], HARD["slope"])),
        int(_between(rng, -HARD["slope"], HARD["slope"])),
    )
    line = np.arange(SIZE, dtype=np.int64) - SIZE // 2
    grey = grey + (across * line[None, :] + down * line[:, None]) // SIZE
    grain = 1 + int(HARD["grain"] * rng.random())
    grey = grey + (_grain(rng) * grain) // 128
    return np.clip(grey, 0, 255).astype(np.uint8)


HARD = dict(rot=0.14, slant=0.3, scale=(0.44, 0.74), shift=0.09, pen=(4, 10), jit=0.09, dark=(0, 90), light=(165, 255), invert=0.0, slope=40, grain=30)
    rot=0.16,
    slant=0.35,
    scale=(0.42, 0.72),
    shift=0.10,
    pen=(4, 10),
    jit=0.105,
    dark=(0, 100),
    light=(150, 255),
    invert=0.0,
    slope=60,
    grain=50,
)


def _below(rng: Random, n: int) -> int:
    return int(rng.random() * n)


def _between(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _trace(kind: str, knots: list[tuple[float, float]]) -> np.ndarray:
    """Points along a stroke, float64 [m, 2] as (row, column)."""
    p = np.array([(y, x) for x, y in knots])
    t = (np.arange(_SAMPLES) / _SAMPLES)[None, :, None]
    if kind == "ring":
        before, start, stop, after = (np.roll(p, shift, axis=0) for shift in (1, 0, -1, -2))
    else:
        start, stop = p[:-1], p[1:]
        before = np.concatenate([p[:1], p[:-2]])
        after = np.concatenate([p[2:], p[-1:]])
    before, start, stop, after = (q[:, None, :] for q in (before, start, stop, after))
    if kind == "angular":
        pieces = start + t * (stop - start)
    else:  # Catmull-Rom: a smooth curve through all knots
        pieces = (
            start
            + 0.5 * t * (stop - before)
            + t * t * (before - 2.5 * start + 2 * stop - 0.5 * after)
            + t * t * t * (1.5 * (start - stop) + 0.5 * (after - before))
        )
    return pieces.reshape(-1, 2)


def _stamp(points: np.ndarray, pen: int, full: int) -> np.ndarray:
    """Bool [full, full]: where a round pen of radius `pen` has been, `points` int64 [m, 2]."""
    margin = 2 * full  # far more than any stroke leaves the picture by: no clipping of indices
    reach = np.arange(-pen, pen + 1)
    dy, dx = np.nonzero(reach[:, None] ** 2 + reach[None, :] ** 2 <= pen * pen)
    stride = full
    inside = ((points >= -pen) & (points < full + pen)).all(axis=1)
    points = np.unique(points[inside], axis=0)
    stride = full + 4 * pen
    canvas = np.zeros((stride, stride), dtype=bool)
    flat = (points[:, 0] + 2 * pen) * stride + points[:, 1] + 2 * pen
    canvas.reshape(-1)[flat[:, None] + ((dy - pen) * stride + dx - pen)[None, :]] = True
    return canvas[2 * pen : 2 * pen + full, 2 * pen : 2 * pen + full]


def _grain(rng: Random) -> np.ndarray:
    """Noise int64 [64, 64] in -128..127, from the raw 64-bit output of PCG64 (a frozen stream)."""
    raw = np.random.PCG64(int(rng.random() * 2**53)).random_raw(SIZE * SIZE // 8)
    return raw.astype("<u8").view(np.uint8).astype(np.int64).reshape(SIZE, SIZE) - 128
