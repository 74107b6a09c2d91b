"""Small bundles for tests: a random network in the smallest of shapes, written as dml-export writes.

From a script: `sys.path.insert(0, "tests"); from bundles import tiny_bundle`.
"""

from pathlib import Path

import torch

from dml.bundle_format import Training
from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.export.bundle_writer import directory_aside, write


def tiny_encoder(
    seed: int = 0, dim: int = 16, normalize: bool = True, image_size: int = 64
) -> Encoder:
    """The network of backbone=glyphs_cnn with random weights: 64 pixels -> `dim` numbers, 0.4 M weights."""
    torch.manual_seed(seed)
    trunk = Trunk(
        "resnet10t",
        kwargs={"channels": [16, 32, 64, 128], "stem_width": 16},
        image_size=image_size,
        resize=image_size + 8,
        mean=[0.5],
        std=[0.25],
        interpolation="bilinear",
    )
    encoder = Encoder(trunk, Head(pooled_features(trunk, "avg"), dim), normalize)
    return encoder.eval()


def tiny_bundle(
    directory: Path,
    seed: int = 0,
    dim: int = 16,
    normalize: bool = True,
    geometry: str = "cosine",
    training: Training | None = None,
) -> Path:
    """Write a bundle into `directory`, which must not be there yet; returns it.  Two seconds."""
    with directory_aside(directory) as work:
        write(tiny_encoder(seed, dim, normalize), work, geometry, training)
    return directory
