"""What happens to an image between the file and the encoder, in evaluation and in export alike."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F


def open_rgb(path: Path) -> Image.Image:
    """Read a file as RGB.

    Grey-scale, palette, CMYK and 16-bit images are converted; transparency is dropped. EXIF rotation is
    ignored, as in the data sets' published results.

    Raises OSError (unreadable or truncated file), or what Pillow's decoder raises.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I;16") or image.mode == "I":
            image = image.point(lambda value: value / 256).convert("L")  # 16 bits to 8
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, crop the centre, scale to [0, 1], normalise.

    Called with a PIL image, returns float32 [3, image_size, image_size].
    mean, std: one number a channel, on the scale of pixels in [0, 1].
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image -> the encoder's input, float32 [3, image_size, image_size]."""
        pixels = cast(Any, image)  # torchvision annotates tensors, and takes PIL images as well
        pixels = F.resize(
            pixels, [self.resize], InterpolationMode(self.interpolation), antialias=True
        )
        return self.to_tensor(F.center_crop(pixels, [self.image_size, self.image_size]))

    def to_tensor(self, image: Any) -> Tensor:
        """PIL image -> normalised float32 [3, h, w]; the last step of training images as well."""
        return self.normalize(F.pil_to_tensor(image))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [..., 3, h, w] -> normalised float32 of the same shape."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return pixels.float().div_(255).sub_(mean).div_(std)

    def as_dict(self) -> dict[str, Any]:
        """The whole record, for export: everything needed to do the same elsewhere."""
        return asdict(self)
