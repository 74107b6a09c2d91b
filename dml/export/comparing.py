"""Exported graphs beside the PyTorch encoder, on the same real images."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from dml.bundle_format import Parity
from dml.data.decode import UnreadableImage, open_rgb
from dml.data.images import BadImages, Batch
from dml.data.index import ImageSet
from dml.encoder import Encoder
from dml.errors import RunError
from dml.evaluation import evaluate
from dml.export.formats import Run

LEAST_COSINE = 0.9999  # of an image's embedding by a float32 graph to that by the encoder
RECALL = 0.002  # by which Recall@1 of a float32 graph may differ
BATCH = 32


class Sample:
    """Images of some classes, decoded as the evaluation decodes them.

    crops: uint8 [n, 3, s, s].  labels: int64 [n].
    """

    def __init__(self, images: ImageSet, encoder: Encoder, bad_images: BadImages):
        crops, labels, positions = [], [], []
        for position in bar(range(len(images)), "Reading images"):
            path = images.path(position)
            try:
                crops.append(encoder.preprocess.crop(open_rgb(path)))
            except UnreadableImage as error:
                nothing = torch.empty(0)
                bad_images.check(Batch(nothing, nothing, nothing, [(str(path), str(error))]))
                continue
            labels.append(int(images.labels[position]))
            positions.append(position)
        if not crops:
            raise RunError("no image could be read.")
        self.images = images
        self.positions = positions
        self.crops = torch.stack(crops).numpy()
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def embed(self, run: Run, preprocess: str, name: str) -> np.ndarray:
        """Embeddings by a function of crops in batches, or of whole images one by one; float32 [n, dim]."""
        if preprocess == "in_graph":
            whole = (
                np.asarray(open_rgb(self.images.path(position)))[None]
                for position in self.positions
            )
            return np.concatenate([run(image) for image in bar(whole, name, len(self))])
        parts = [self.crops[start : start + BATCH] for start in range(0, len(self), BATCH)]
        return np.concatenate([run(part) for part in bar(parts, name)])


def sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    """About `count` images: whole classes in random order, so that queries have positives."""
    random = np.random.default_rng(seed)
    order = random.permutation(images.num_classes)
    places = np.concatenate([np.flatnonzero(images.labels == label) for label in order])[:count]
    return replace(
        images,
        relative_paths=images.relative_paths[places],
        labels=images.labels[places],
        ids=images.ids[places],
        superclasses=None,
        is_query=None,
    )


def reference(encoder: Encoder) -> Run:
    """The PyTorch encoder itself, as a function of crops."""

    @torch.inference_mode()
    def run(crops: np.ndarray) -> np.ndarray:
        return encoder(torch.from_numpy(crops)).numpy()

    return run


def parity(found: np.ndarray, expected: np.ndarray, labels: torch.Tensor, geometry: str) -> Parity:
    """One set of embeddings beside another, row by row.  Raises RunError for what is not finite."""
    if not np.isfinite(found).all():
        raise RunError("a graph's embeddings are not finite.")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(1) / np.maximum(lengths, 1e-12)
    recall = [recall_at_1(vectors, labels, geometry) for vectors in (found, expected)]
    return Parity(
        images=len(labels),
        largest_difference=float(np.abs(found - expected).max()),
        smallest_cosine=float(min(cosines.min(), 1.0)),
        recall_at_1=recall[0],
        recall_at_1_torch=recall[1],
    )


def recall_at_1(vectors: np.ndarray, labels: torch.Tensor, geometry: str) -> float:
    """Each image against the others of the sample."""
    compared: Any = geometry  # annotated as one of three words
    try:
        found = evaluate(
            torch.from_numpy(vectors), labels, metrics=("recall@1",), similarity=compared
        )
    except ValueError as error:
        raise RunError(f"the sample of images cannot be evaluated: {error}.") from error
    return found["recall@1"]


def miss(found: Parity) -> str | None:
    """What keeps a float32 graph from being the encoder, or None."""
    if found.smallest_cosine < LEAST_COSINE:
        return f"smallest cosine {found.smallest_cosine:.6f}, and {LEAST_COSINE} is asked for"
    if abs(found.recall_at_1 - found.recall_at_1_torch) > RECALL:
        return (
            f"Recall@1 {found.recall_at_1:.4f} instead of {found.recall_at_1_torch:.4f}, and a "
            f"difference of {RECALL} is allowed"
        )
    return None


def bar(items: Iterable[Any], name: str, total: int | None = None) -> Iterable[Any]:
    """A progress bar on stderr, on a terminal."""
    console = Console(stderr=True)
    hidden = not sys.stderr.isatty()
    return track(items, name, total, console=console, transient=True, disable=hidden)
