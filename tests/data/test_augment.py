"""Augmentation: the crops of the literature, drawn before the file is decoded."""

import dataclasses
import inspect
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from dml.config.compose import compose_all, config_dir
from dml.config.schema import Augment
from dml.data.augment import Augmentation, crop_box, resized
from dml.data.decode import ImageFile
from dml.data.preprocess import Preprocess
from dml.errors import ConfigurationError

FILES = sorted((config_dir() / "augment").glob("*.yaml"))
RATIO = (3 / 4, 4 / 3)


def preprocess(size=32, resize=36, interpolation="bicubic"):
    return Preprocess(size, resize, interpolation, (0.5,) * 3, (0.5,) * 3)


def augmentation(own=None, **changed) -> Augmentation:
    zero = ("flip", "degrees", "translate", "shear", "color_jitter", "rand_augment", "erase")
    plain = {"resize": None, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)} | dict.fromkeys(zero, 0)
    return Augmentation(own or preprocess(), **plain | changed)


def smooth(height: int, width: int) -> Image.Image:
    """Colours that change slowly: what is left of them does not depend on the filter."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def file(tmp_path) -> ImageFile:
    """A small image."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return ImageFile(tmp_path / "image.png")


def test_without_randomness_training_images_are_those_of_the_evaluation(file):
    assert torch.equal(augmentation()(file), preprocess().crop(file.image()))


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": (0.2, 1.0)},
        {"scale": (0.2, 1.0), "resize": 40},
        {"flip": 0.5},
        {"degrees": 20},
        {"translate": 0.2},
        {"shear": 20},
        {"color_jitter": 0.4},
        {"rand_augment": 9},
        {"erase": 0.5},
    ],
)
def test_every_option_changes_the_image(file, changed):
    """An option that is accepted and does nothing would be the worst kind."""
    transform = augmentation(**changed)
    torch.manual_seed(0)
    drawn = torch.stack([transform(file) for _ in range(8)])
    assert drawn.shape == (8, 3, 32, 32)
    assert drawn.dtype == torch.uint8
    assert (drawn != drawn[0]).any()


def test_an_erased_rectangle_is_the_mean_colour(file):
    """So that it is near 0 once normalised, as in the paper's variant with the mean."""
    own = Preprocess(32, 36, "bilinear", (0.2, 0.4, 0.6), (0.5,) * 3)
    torch.manual_seed(0)
    changed = augmentation(own, erase=1.0)(file)
    plain = augmentation(own)(file)
    erased = (changed != plain).any(0)
    assert 0.02 * 32 * 32 * 0.8 < erased.sum() < 0.4 * 32 * 32
    assert changed[:, erased].unique(dim=1).flatten().tolist() == [51, 102, 153]


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    low=st.floats(0.01, 1),
    ratio=st.sampled_from([RATIO, (1.0, 1.0), (0.1, 0.2), (4.0, 9.0)]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_a_crop_lies_within_the_image(height, width, low, ratio, seed):
    torch.manual_seed(seed)
    top, left, h, w = crop_box(height, width, (low, 1.0), ratio)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((375, 500), (0.08, 1.0), RATIO),
        ((500, 375), (0.16, 1.0), (0.75, 1.33)),
        ((64, 64), (0.5, 1.0), (0.8, 1.25)),
        ((30, 600), (0.5, 1.0), RATIO),  # hardly any draw fits
        ((600, 30), (0.5, 1.0), RATIO),
    ],
)
def test_crops_are_distributed_as_torchvisions(size, scale, ratio):
    """Literature means torchvision's RandomResizedCrop; ours draws its numbers in another order."""
    from torchvision.transforms import RandomResizedCrop

    image, count = torch.zeros(3, *size), 3000
    torch.manual_seed(0)
    ours = np.array([crop_box(*size, scale, ratio) for _ in range(count)], float)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)], float
    )
    spread = theirs.std(0) + 1e-9
    error = np.abs(ours.mean(0) - theirs.mean(0)) / (spread * np.sqrt(2 / count))
    assert (error < 4.5).all(), "means of top, left, height, width"
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.08, atol=1e-6)
    area, expected = (boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs))
    np.testing.assert_allclose(
        np.quantile(area, [0.1, 0.5, 0.9]), np.quantile(expected, [0.1, 0.5, 0.9]), rtol=0.06
    )


class Whole(ImageFile):
    """Always decodes every pixel."""

    def pixels(self, factor=1.0):
        self.asked = factor
        return super().pixels()


@pytest.mark.parametrize("resize", [None, 64])
@pytest.mark.parametrize("size", [(700, 900), (431, 257), (60, 50)])
def test_decoding_less_shows_the_same_place(tmp_path, size, resize):
    """The crop is drawn in the header's pixels and cut from fewer: its edges may move by half of one."""
    path, (height, width) = tmp_path / "image.jpg", size
    down, across = np.mgrid[:height, :width]
    ramps = np.stack([255 * across / width, 255 * down / height, 0 * down], -1)
    Image.fromarray(ramps.astype(np.uint8)).save(path, quality=98, subsampling=0)
    transform = augmentation(scale=(0.3, 1.0), ratio=RATIO, resize=resize)
    whole, saved = Whole(path), 0
    for seed in range(12):
        torch.manual_seed(seed)
        less = transform(ImageFile(path)).float()
        torch.manual_seed(seed)
        full = transform(whole).float()
        # Of the decoded image, in grey values.
        half_pixel = 255 / min(size) / 2 / min(1, whole.asked)
        assert (less - full).abs().amax() <= half_pixel + 4
        saved += whole.asked <= 0.5
    assert saved == 0 if min(size) == 50 else saved > 0


def test_resizing_comes_before_the_crop(tmp_path):
    """Resize(64), then RandomResizedCrop, as torchvision does one after the other."""
    smooth(100, 160).save(tmp_path / "image.png")
    file = ImageFile(tmp_path / "image.png")
    transform = augmentation(preprocess(interpolation="bilinear"), scale=(0.3, 0.9), resize=64)
    small = v2.functional.resize(file.image(), [64])  # type: ignore[arg-type]
    assert small.size == (102, 64)
    for seed in range(5):
        torch.manual_seed(seed)
        ours = transform(file)
        torch.manual_seed(seed)
        top, left, height, width = crop_box(64, 102, (0.3, 0.9), (1.0, 1.0))
        cut = v2.functional.resized_crop(small, top, left, height, width, [32, 32])  # type: ignore[arg-type]
        assert (ours.int() - v2.functional.pil_to_tensor(cut).int()).abs().max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(20, 30), (90, 70)])
def test_resizing_equals_pillow(interpolation, size):
    """torch resizes uint8 with rounding of its own, and evaluation with Pillow's."""
    image = smooth(50, 60)
    mode = InterpolationMode(interpolation)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = v2.functional.pil_to_tensor(v2.functional.resize(image, list(size), mode))  # type: ignore[arg-type]
    assert (resized(pixels, list(size), mode).int() - expected.int()).abs().max() <= 2


@cache
def composed(name: str) -> DictConfig:
    """A file as a run gets it; composing takes half a second."""
    config, problems = compose_all([f"augment={name}"])
    assert problems == []
    return config.config.augment


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_yaml_schema_and_code_agree(path):
    """One place for a value, one for its range, one for its meaning."""
    node = composed(path.stem)
    assert OmegaConf.get_type(node) is Augment
    keys = {str(key) for key in node} - {"_target_"}
    assert keys == {field.name for field in dataclasses.fields(Augment)} - {"_target_"}
    assert keys == set(inspect.signature(Augmentation).parameters) - {"preprocess"}
    assert not OmegaConf.missing_keys(node)
    Augmentation(preprocess(), **{key: node[key] for key in keys})
    head = path.read_text().splitlines()[0]
    assert not path.stem.startswith("paper") or "arXiv:" in head


def test_papers_differ_where_they_differ():
    """Table of the recipes: where the crop is taken from, and its smallest share of the area."""
    table = {
        "paper_proxy_anchor": (None, 0.08),
        "paper_revisiting": (None, 0.08),
        "paper_ms": (256, 0.16),
        "paper_reality_check": (256, 0.16),
        "paper_cross_entropy": (256, 0.16),
    }
    assert {path.stem for path in FILES if path.stem.startswith("paper")} == set(table)
    for name, expected in table.items():
        assert (composed(name).resize, composed(name).scale[0]) == expected


def test_a_resize_without_a_crop_is_refused():
    """It would be ignored: the evaluation's own resize is what remains."""
    options = dict(composed("none")) | {"resize": 256, "scale": [1, 1], "ratio": [1, 1]}
    with pytest.raises(ConfigurationError, match=r"resize=256.*precedes a random crop"):
        Augment(**options)
