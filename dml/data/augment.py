"""Training images: random crop and flip, warp, colours, erasing.  The loader normalises them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from dml.data.decode import ImageFile
from dml.data.preprocess import Preprocess

TRIES = 10  # of a crop that fits, as torchvision


class Augmentation:
    """The transform of training images: an image file -> uint8 [3, image_size, image_size].

    In this order:
    resize: the shorter side that the whole image is resized to before the crop; None: it is not.
    scale, ratio: ranges of the random crop's share of the area and of its width / height
    (torchvision's RandomResizedCrop); scale [1, 1] leaves the crop out and resizes as the evaluation
    does.
    flip: probability of a horizontal flip.
    degrees, translate (share of the side), shear (degrees): largest random warp either way.
    color_jitter: strength for brightness, contrast and saturation.
    rand_augment: magnitude, 0 to 30, of two operations drawn by RandAugment (Cubuk et al.,
    arXiv:1909.13719); 0: none.
    erase: probability that a rectangle of 2 to 33 % of the area becomes the mean colour
    (Zhong et al., arXiv:1708.04896).

    Draws from torch's global generator.  Decodes no more than the crop needs.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        *,
        resize: int | None,
        scale: Sequence[float],
        ratio: Sequence[float],
        flip: float,
        degrees: float,
        translate: float,
        shear: float,
        color_jitter: float,
        rand_augment: int,
        erase: float,
    ):
        self.preprocess = preprocess
        self.resize, self.scale, self.ratio, self.flip = resize, scale, ratio, flip
        self.size = preprocess.image_size
        self.interpolation = InterpolationMode(preprocess.interpolation)
        bilinear = InterpolationMode.BILINEAR
        self.steps: list[Callable[[Tensor], Tensor]] = []
        if degrees or translate or shear:
            self.steps.append(
                v2.RandomAffine(
                    [-degrees, degrees],
                    translate=(translate, translate) if translate else None,
                    shear=[-shear, shear, -shear, shear] if shear else None,
                    interpolation=bilinear,
                    fill=0,
                )
            )
        if color_jitter:
            self.steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        if rand_augment:
            self.steps.append(v2.RandAugment(2, rand_augment, interpolation=bilinear))
        if erase:
            mean: Any = [round(255 * value) for value in preprocess.mean]  # annotated as one number
            self.steps.append(v2.RandomErasing(erase, value=mean))

    def __call__(self, file: ImageFile) -> Tensor:
        """See the class."""
        if tuple(self.scale) == (1.0, 1.0):
            pixels = self.preprocess.crop(file.image())
        else:
            pixels = self.random_crop(file)
        if self.flip and float(torch.rand(())) < self.flip:
            pixels = pixels.flip(-1)
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def random_crop(self, file: ImageFile) -> Tensor:
        """A random crop, resized to uint8 [3, size, size].

        The crop is drawn from the header's size; the file is then decoded so that it has at least
        `size` pixels a side, if the file itself does.
        """
        if self.resize is None:
            height, width = file.height, file.width
        else:
            height, width = resized_size(file.height, file.width, self.resize)
        top, left, h, w = crop_box(height, width, self.scale, self.ratio)
        if self.resize is None:
            pixels = file.pixels(self.size / min(h, w))
        else:
            pixels = file.pixels(self.resize / min(file.height, file.width))
            pixels = resized(pixels, [height, width], self.interpolation)
        y, x = pixels.shape[1] / height, pixels.shape[2] / width  # 1, or what was decoded
        rows = slice(round(y * top), max(round(y * (top + h)), round(y * top) + 1))
        columns = slice(round(x * left), max(round(x * (left + w)), round(x * left) + 1))
        return resized(pixels[:, rows, columns], [self.size, self.size], self.interpolation)


def crop_box(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, as torchvision's RandomResizedCrop draws it.

    Its share of the area is uniform in `scale`, the logarithm of width / height uniform in `ratio`;
    after ten draws that do not fit, the largest crop at the centre whose width / height is in `ratio`.
    """
    low, high = (math.log(value) for value in ratio)
    for area, shape, down, across in torch.rand(TRIES, 4, dtype=torch.float64).tolist():
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        shape = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(across * (width - w + 1)), h, w
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width once the shorter side is `shorter`, as torchvision's Resize."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def resized(pixels: Tensor, size: list[int], interpolation: InterpolationMode) -> Tensor:
    """uint8 [3, h, w] resized to `size` with antialiasing, by torch where it has the filter.

    Its bilinear and bicubic filters equal Pillow's but for rounding, in half the time.
    """
    if tuple(pixels.shape[1:]) == tuple(size):
        return pixels
    if interpolation.value in ("bilinear", "bicubic"):
        return interpolate(pixels[None], size, mode=interpolation.value, antialias=True)[0]
    return F.pil_to_tensor(F.resize(F.to_pil_image(pixels), size, interpolation))
