"""Images of one split as a torch data set."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dml.data.index import ImageSet
from dml.data.preprocess import open_rgb
from dml.errors import RunError


class Batch(NamedTuple):
    """images: float32 [n, 3, h, w].  labels: int64 [n], 0..C-1 of the split.  ids: int64 [n].

    unreadable: (file, reason) of images that should have been in this batch.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    unreadable: list[tuple[str, str]]


class Sample(NamedTuple):
    """One image, or the reason why there is none."""

    image: Tensor | None
    label: int
    id: int
    unreadable: tuple[str, str] | None


class Images(Dataset):
    """Decoded and transformed images; an index is a position, or (position, seed) for random transforms.

    With a seed the transform's randomness depends on it alone: not on the number of workers, on the
    batches before, or on a resumed run.
    """

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Tensor]):
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | tuple[int, int]) -> Sample:
        position, seed = index if isinstance(index, tuple) else (index, None)
        label, image_id = int(self.images.labels[position]), int(self.images.ids[position])
        path = self.images.path(position)
        try:
            image = open_rgb(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # Not raised here: an exception crosses a worker process as text. `collate` passes it on
            # and the training process decides by data.on_bad_image.
            return Sample(None, label, image_id, (str(path), f"{type(error).__name__}: {error}"))
        if seed is None:
            return Sample(self.transform(image), label, image_id, None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Sample(self.transform(image), label, image_id, None)


def collate(samples: list[Sample]) -> Batch:
    """Stack the readable images of a batch and list the others."""
    good = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in good if sample.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0, 3, 0, 0),
        torch.tensor([sample.label for sample in good], dtype=torch.int64),
        torch.tensor([sample.id for sample in good], dtype=torch.int64),
        [sample.unreadable for sample in samples if sample.unreadable is not None],
    )


class BadImages:
    """What to do about unreadable images: stop at the first (`error`), or skip and count (`skip`)."""

    def __init__(self, on_bad_image: str):
        self.on_bad_image = on_bad_image
        self.skipped: dict[str, str] = {}

    def check(self, batch: Batch) -> None:
        """Raise RunError naming the file, or remember it as skipped."""
        for path, reason in batch.unreadable:
            if self.on_bad_image == "error":
                raise RunError(
                    f"cannot read the image {path} ({reason}).\n"
                    "Mend or remove the file, or add data.on_bad_image=skip to leave such images out "
                    "(the record counts them)."
                )
            self.skipped[path] = reason
