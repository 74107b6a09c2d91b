"""Test-time augmentation: several views of an image, one embedding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.v2.functional import resize

Views = Callable[[Tensor], list[Tensor]]


def flip(images: Tensor) -> list[Tensor]:
    """The images [n, 3, h, w] and their mirror images (left and right swapped)."""
    return [images, images.flip(-1)]


def multi_scale(images: Tensor, scales: Sequence[float]) -> list[Tensor]:
    """The images [n, 3, h, w] at several multiples of their size, bilinear with antialiasing.

    As in Radenović et al., TPAMI 2018, arXiv:1711.02512, section 4.1, who use 1, 1/sqrt(2) and 1/2.
    """
    height, width = images.shape[-2:]
    return [
        images
        if scale == 1
        else resize(images, [round(height * scale), round(width * scale)], antialias=True)
        for scale in scales
    ]


def averaged(encoder: Callable[[Tensor], Tensor], views: Sequence[Views]) -> Callable:
    """images [n, 3, h, w] -> unit vectors [n, d]: mean of the normalised embeddings of all views.

    views: applied one after another, each to every view so far; none: the images alone.
    """

    def embed(images: Tensor) -> Tensor:
        seen = [images]
        for view in views:
            seen = [result for image in seen for result in view(image)]
        total = torch.stack([normalize(encoder(view).float()) for view in seen]).mean(0)
        return normalize(total)

    return embed
