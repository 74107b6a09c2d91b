"""What happens to an image between the file and the encoder, in evaluation and in export alike."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, crop the centre, scale to [0, 1], normalise.

    Called with a PIL image (RGB), returns float32 [3, image_size, image_size].
    mean, std: one number a channel, on the scale of pixels in [0, 1].
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image -> the encoder's input, float32 [3, image_size, image_size]."""
        return self.normalize(self.crop(image))

    def crop(self, image: Image.Image) -> Tensor:
        """PIL image -> uint8 [3, image_size, image_size]: resized by Pillow, the centre cut out."""
        pixels = cast(Any, image)  # torchvision annotates tensors, and takes PIL images as well
        mode = InterpolationMode(self.interpolation)
        pixels = F.resize(pixels, [self.resize], mode, antialias=True)
        return F.pil_to_tensor(F.center_crop(pixels, [self.image_size, self.image_size]))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [..., 3, h, w] -> normalised float32 of the same shape, on the same device.

        (pixels / 255 - mean) / std as one multiplication and one addition, equal up to rounding.
        """
        scale, shift = (factor.to(pixels.device) for factor in self.scale_and_shift)
        out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
        # On a CPU image by image, each of which stays in the cache.
        size = 1 if pixels.ndim == 4 and pixels.device.type == "cpu" else len(pixels)
        for source, target in zip(pixels.split(size), out.split(size), strict=True):
            target.copy_(source).mul_(scale).add_(shift)
        return out

    @cached_property
    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What pixels are multiplied by, and what is added then; float32 [3, 1, 1] each."""
        mean, std = (torch.tensor(x, dtype=torch.float64) for x in (self.mean, self.std))
        both = 1 / (255 * std), -mean / std
        return both[0].float().view(3, 1, 1), both[1].float().view(3, 1, 1)

    def as_dict(self) -> dict[str, Any]:
        """The whole record, for export: everything needed to do the same elsewhere."""
        return asdict(self)
