"""Preprocessing and augmentation: modes, sizes, and the encoder's own normalisation at the end."""

import numpy as np
import pytest
import torch
from PIL import Image

from dml.data.augment import augmentation
from dml.data.preprocess import Preprocess, open_rgb

HALF = (0.5, 0.5, 0.5)


def preprocess(size=32, resize=36):
    return Preprocess(size, resize, "bicubic", HALF, HALF)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    """CUB, Cars and SOP hold a few grey-scale images; stacking them with others must not fail."""
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 50), 128 * 256, np.uint16))
    else:
        image = Image.new("RGB", (50, 40), (128, 128, 128)).convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png")
    image.save(path)
    rgb = open_rgb(path)
    assert rgb.mode == "RGB"
    assert preprocess()(rgb).shape == (3, 32, 32)
    if mode not in ("1", "P"):  # these two quantise the grey
        assert abs(np.asarray(rgb).mean() - 128) < 3


def test_a_palette_with_transparency_raises_no_warning(tmp_path, recwarn):
    image = Image.new("P", (40, 40))
    image.info["transparency"] = bytes(range(256))
    image.save(tmp_path / "image.png", transparency=bytes(range(256)))
    assert open_rgb(tmp_path / "image.png").mode == "RGB"
    assert not recwarn.list


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


def options(**changed):
    plain = {
        "scale": (1.0, 1.0),
        "ratio": (1.0, 1.0),
        "flip": 0,
        "degrees": 0,
        "translate": 0,
        "shear": 0,
        "color_jitter": 0,
    }
    return plain | changed


def test_without_randomness_training_images_are_those_of_the_evaluation():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8))
    same = augmentation(preprocess(), **options())
    torch.testing.assert_close(same(image), preprocess()(image))


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": (0.2, 1.0)},
        {"flip": 0.5},
        {"degrees": 20},
        {"translate": 0.2},
        {"shear": 20},
        {"color_jitter": 0.4},
    ],
)
def test_every_option_changes_the_image(changed):
    """An option that is accepted and does nothing would be the worst kind."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8))
    transform = augmentation(preprocess(), **options(**changed))
    torch.manual_seed(0)
    drawn = torch.stack([transform(image) for _ in range(8)])
    assert drawn.shape == (8, 3, 32, 32)
    assert (drawn != drawn[0]).any()
