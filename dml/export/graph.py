"""The encoder as one module from uint8 pixels to embeddings, for formats that hold a graph and no Python."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dml.data.preprocess import Preprocess
from dml.encoder import Encoder
from dml.types import Embeddings


class FromCrops(nn.Module):
    """Cropped images, uint8 [n, 3, s, s], to embeddings: normalisation and the encoder."""

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        scale, shift = encoder.preprocess.scale_and_shift
        self.register_buffer("scale", scale.clone())
        self.register_buffer("shift", shift.clone())

    def forward(self, images: UInt8[Tensor, "n 3 s s"]) -> Embeddings:
        """See the class."""
        return self.encoder(images.float() * self.scale + self.shift)


class FromImages(nn.Module):
    """Whole images of one size, uint8 [n, h, w, 3], to embeddings: resize, crop, normalisation, encoder."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.crop = ResizedCrop(encoder.preprocess)
        self.embed = FromCrops(encoder)

    def forward(self, images: UInt8[Tensor, "n h w 3"]) -> Embeddings:
        """See the class."""
        return self.embed(self.crop(images.permute(0, 3, 1, 2)))


class ResizedCrop(nn.Module):
    """`Preprocess.crop` in tensor operations: Pillow's antialiased resize, then the centre.

    Pillow resizes along each side by a weighted mean over the pixels within reach of a kernel that is
    stretched by the factor of shrinking, and rounds to whole numbers after each side.  Here the
    weights of the cropped places form a matrix [s, side], so that every size in between needs no
    shape of its own.  Two things are Pillow's own: weights as fixed-point numbers of 22 bits, which makes
    one pixel in some thousands differ by 1, and, in newer versions, rows before columns in tall images,
    which rounds differently in between.

    Raises ValueError for an interpolation other than bilinear and bicubic, and for a crop that is larger
    than the resized image.
    """

    def __init__(self, preprocess: Preprocess):
        super().__init__()
        if preprocess.interpolation not in KERNELS:
            raise ValueError(
                f"interpolation {preprocess.interpolation} has no equal in tensor operations here; "
                f"{' and '.join(KERNELS)} have"
            )
        if preprocess.resize < preprocess.image_size:
            raise ValueError(
                f"the crop of {preprocess.image_size} pixels is larger than the resized side of "
                f"{preprocess.resize}"
            )
        self.size, self.resize = preprocess.image_size, preprocess.resize
        self.kernel = KERNELS[preprocess.interpolation]

    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        """Whole numbers in [0, 255], as float32."""
        rows, columns = (
            torch.arange(images.shape[side], dtype=torch.float64, device=images.device) + 0.5
            for side in (2, 3)
        )
        height, width = rows[-1] + 0.5, columns[-1] + 0.5
        shorter = torch.minimum(height, width)
        across = self.weights(columns, width, torch.floor(self.resize * width / shorter))
        down = self.weights(rows, height, torch.floor(self.resize * height / shorter))
        pixels = whole(images.float() @ across.T)
        return whole(down @ pixels)

    def weights(
        self, places: Float[Tensor, " side"], side: Tensor, resized: Tensor
    ) -> Float[Tensor, "s side"]:
        """What each pixel of a side adds to each place of the crop.

        places: centres of the pixels.  side, resized: length before and after resizing.
        """
        first = torch.round((resized - self.size) / 2)
        wanted = torch.arange(self.size, dtype=torch.float64, device=places.device) + 0.5 + first
        scale = side / resized
        distance = (places - (wanted * scale)[:, None]) / scale.clamp(min=1.0)
        weights = self.kernel(distance.abs())
        return (weights / weights.sum(1, keepdim=True)).float()


def whole(pixels: Tensor) -> Tensor:
    """Rounded to whole numbers, halves up, within the range of 8 bits."""
    return torch.floor(pixels + 0.5).clamp(0.0, 255.0)


def bilinear(distance: Tensor) -> Tensor:
    """Pillow's BILINEAR, a triangle."""
    return (1.0 - distance).clamp(min=0.0)


def bicubic(distance: Tensor) -> Tensor:
    """Pillow's BICUBIC, Keys' kernel with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    zero = torch.zeros_like(distance)
    return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, zero))


KERNELS = {"bilinear": bilinear, "bicubic": bicubic}
