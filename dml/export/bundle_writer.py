"""Write a bundle: aside first, and under its name only once it is whole and opens."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from dml import bundle_format, record
from dml.bundle import ImageEncoder
from dml.bundle_format import (
    DESCRIPTION,
    FORMAT_VERSION,
    PROBE,
    WEIGHTS,
    Backbone,
    Description,
    HeadOptions,
    Preprocessing,
    Training,
)
from dml.encoder import Encoder
from dml.errors import RunError

PROBE_SIDES = (300, 260)  # width and height: no square, so that a wrong crop shows


def write(
    encoder: Encoder, directory: Path, geometry: str, training: Training | None
) -> ImageEncoder:
    """Write encoder.json, weights and probe into an empty directory; returns the encoder as users have it.

    encoder: in evaluation mode, on the CPU.  geometry: how its embeddings are compared.

    Raises RunError: embeddings that are not finite, or options that a bundle cannot hold.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}
    save_file({key: value.clone() for key, value in state.items()}, directory / WEIGHTS)
    (directory / WEIGHTS).chmod(0o644)
    told = encoder.preprocess
    description = Description(
        format_version=FORMAT_VERSION,
        backbone=Backbone(encoder.trunk.name, dict(encoder.trunk.kwargs)),
        head=head_options(encoder),
        dim=encoder.dim,
        normalized=encoder.normalize,
        geometry=geometry,
        preprocess=Preprocessing(
            told.image_size, told.resize, told.interpolation, list(told.mean), list(told.std)
        ),
        training=training,
        versions=record.versions(),
        files={WEIGHTS: bundle_format.file_of(directory / WEIGHTS)},
    )
    exported = ImageEncoder(encoder, description)
    image = probe_image()
    embedding = exported([image])[0].numpy()
    if not np.isfinite(embedding).all() or not embedding.any():
        raise RunError("the encoder's embeddings are not finite, or all zero: nothing to export.")
    np.savez(directory / PROBE, image=image, embedding=embedding)
    describe(directory, exported, PROBE)
    return exported


def describe(directory: Path, encoder: ImageEncoder, *files: str, **changes) -> None:
    """Write encoder.json anew: with further files, whose checksums are taken, and other changes."""
    told = encoder.description
    listed = told.files | {name: bundle_format.file_of(directory / name) for name in files}
    encoder.description = dataclasses.replace(told, files=listed, **changes)
    record.write_json(encoder.description.as_dict(), directory / DESCRIPTION)


def head_options(encoder: Encoder) -> HeadOptions:
    """The arguments that make the encoder's head."""
    head = encoder.head
    dim = head.dim if isinstance(head.linear, torch.nn.Linear) else None
    return HeadOptions(head.pooling, dim, isinstance(head.norm, torch.nn.LayerNorm))


def probe_image() -> np.ndarray:
    """A drawn picture, uint8 [260, 300, 3]: shades, edges and fine grain, and nobody's photograph."""
    width, height = PROBE_SIDES
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    shades = np.stack([255 * x / width, 255 * y / height, 255 * (1 - x / width)], axis=-1)
    picture = Image.fromarray(shades.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(24):
        left, top = (int(random.integers(0, side)) for side in PROBE_SIDES)
        across, down = random.integers(10, 90, size=2).tolist()
        color = tuple(random.integers(0, 256, size=3).tolist())
        draw.ellipse((left, top, left + across, top + down), fill=color)
    grain = random.integers(-20, 21, size=shades.shape)
    return np.clip(np.asarray(picture).astype(int) + grain, 0, 255).astype(np.uint8)


@contextmanager
def directory_aside(out: Path) -> Iterator[Path]:
    """A new directory beside `out` that takes its name at the end; whatever was there stays till then.

    If anything is raised the new directory is removed, and the old one is as it was.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        work.chmod(0o755)
        yield work
        if not out.exists():
            work.rename(out)
            return
        old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
        out.replace(old / out.name)
        try:
            work.rename(out)
        except OSError:
            (old / out.name).rename(out)
            raise
        finally:
            if out.exists():
                shutil.rmtree(old)
    finally:
        shutil.rmtree(work, ignore_errors=True)
