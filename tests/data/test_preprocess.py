"""Preprocessing: the evaluation's own geometry, and the encoder's own normalisation at the end."""

import numpy as np
import torch
from PIL import Image

from dml.data.preprocess import Preprocess

HALF = (0.5, 0.5, 0.5)


def preprocess(size=32, resize=36):
    return Preprocess(size, resize, "bicubic", HALF, HALF)


def test_the_shorter_side_is_resized_and_the_centre_is_cropped():
    """A wide image keeps its proportions: Resize(36), not Resize((36, 36))."""
    pixels = np.zeros((72, 144, 3), np.uint8)
    pixels[:, 70:74] = 255  # a white line in the middle
    out = preprocess()(Image.fromarray(pixels))
    bright = out[0].mean(0) > 0
    assert bright.nonzero().flatten().tolist() == [15, 16]


def test_normalisation_is_by_hand():
    image = Image.new("RGB", (32, 32), (255, 0, 51))
    out = Preprocess(32, 32, "bilinear", (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))(image)
    expected = torch.tensor([(1 - 0.5) / 0.5, (0 - 0.4) / 0.2, (0.2 - 0.3) / 0.1])
    torch.testing.assert_close(out[:, 0, 0], expected)
    assert out.dtype == torch.float32


def test_a_batch_is_normalised_as_its_images():
    """A batch is done image by image on a CPU, and none may be left out."""
    shape = (7, 3, 5, 4)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))
    own = Preprocess(4, 4, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    mean, std = torch.tensor(own.mean).view(3, 1, 1), torch.tensor(own.std).view(3, 1, 1)
    expected = (pixels.double() / 255 - mean) / std
    torch.testing.assert_close(own.normalize(pixels), expected.float())
    for image, of_batch in zip(pixels, own.normalize(pixels), strict=True):
        assert torch.equal(own.normalize(image), of_batch)
    assert own.normalize(pixels[:0]).shape == (0, 3, 5, 4)
