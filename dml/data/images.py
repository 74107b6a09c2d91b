"""Images of one split as a torch data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dml.data.decode import UnreadableImage
from dml.data.index import ImageSet
from dml.errors import RunError


class Batch(NamedTuple):
    """images: uint8 [n, 3, h, w], which the encoder normalises.  labels: int64 [n], 0..C-1 of the split.
    ids: int64 [n].

    unreadable: (file, reason) of images that should have been in this batch.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    unreadable: list[tuple[str, str]]


class Sample(NamedTuple):
    """One image, uint8 [3, h, w], or the reason why there is none."""

    image: Tensor | None
    label: int
    id: int
    unreadable: tuple[str, str] | None


class Images(Dataset):
    """Decoded and transformed images; an index is a position, or (position, seed) for random transforms.

    read: path -> what the transform takes.  transform: that -> uint8 [3, h, w].  Either may raise
    UnreadableImage.
    With a seed the transform's randomness depends on it alone: not on the number of workers, on the
    batches before, or on a resumed run.
    """

    def __init__(
        self, images: ImageSet, read: Callable[..., Any], transform: Callable[..., Tensor]
    ):
        self.images = images
        self.read = read
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | tuple[int, int]) -> Sample:
        position, seed = index if isinstance(index, tuple) else (index, None)
        label, image_id = int(self.images.labels[position]), int(self.images.ids[position])
        path = self.images.path(position)
        try:
            if seed is None:
                image = self.transform(self.read(path))
            else:
                with seeded(seed):
                    image = self.transform(self.read(path))
        except UnreadableImage as error:
            # Not raised further: an exception crosses a worker process as text. `collate` passes it on
            # and the training process decides by data.on_bad_image.
            return Sample(None, label, image_id, (str(path), str(error)))
        except Exception as error:
            error.add_note(f"while reading the image {path}")
            raise
        return Sample(image, label, image_id, None)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's CPU random numbers follow from `seed`, and leave its state as it was.

    What torch.random.fork_rng does for all devices, at a twentieth of its time.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def collate(samples: list[Sample]) -> Batch:
    """Stack the readable images of a batch and list the others."""
    good = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in good if sample.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
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
