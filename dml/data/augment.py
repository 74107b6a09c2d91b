"""Training images: random crop, warp, flip and colours, then the encoder's own normalisation."""

from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from dml.data.preprocess import Preprocess


def augmentation(
    preprocess: Preprocess,
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
    flip: float,
    degrees: float,
    translate: float,
    shear: float,
    color_jitter: float,
) -> Callable[[Image.Image], Tensor]:
    """The transform of training images: PIL image -> float32 [3, image_size, image_size].

    scale, ratio: ranges of the random crop's share of the area and of its width / height; the whole
    range [1, 1] leaves the crop out and resizes as the evaluation does.
    flip: probability of a horizontal flip.  degrees, translate (share of the side), shear (degrees):
    largest random warp either way.  color_jitter: strength for brightness, contrast and saturation.
    """
    interpolation = InterpolationMode(preprocess.interpolation)
    size = [preprocess.image_size, preprocess.image_size]
    steps: list[Callable] = []
    if degrees or translate or shear:
        steps.append(
            v2.RandomAffine(
                [-degrees, degrees],
                translate=(translate, translate) if translate else None,
                shear=[-shear, shear, -shear, shear] if shear else None,
                interpolation=InterpolationMode.BILINEAR,
                fill=0,
            )
        )
    if tuple(scale) == (1.0, 1.0):
        steps += [v2.Resize([preprocess.resize], interpolation), v2.CenterCrop(size)]
    else:
        steps.append(
            v2.RandomResizedCrop(
                size, (scale[0], scale[1]), (ratio[0], ratio[1]), interpolation, antialias=True
            )
        )
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    return v2.Compose([*steps, preprocess.to_tensor])
