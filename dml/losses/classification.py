"""What the classification losses share: class centres, and cross-entropy over logits of a batch.

Such a loss keeps one or more vectors per class (`proxies`), turns a batch into logits [n, c], one
row per sample and one column per class, and takes the cross-entropy of each row. It says how in
`logits(embeddings, labels)`; the labels are there for margins on a sample's own class.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dml.losses.pairs import (
    check_batch,
    check_classes,
    check_finite,
    full_precision,
    refuse_tuple,
    unit,
)
from dml.types import Embeddings, IndicesTuple, Labels


@runtime_checkable
class Classifier(Protocol):
    """A loss that gives logits."""

    num_classes: int

    @property
    def proxies(self) -> nn.Parameter:
        """The class centres."""
        ...

    def logits(self, embeddings: Embeddings, labels: Labels) -> Float[Tensor, "n c"]:
        """One row per sample; embeddings and labels are checked already."""
        ...


def class_centres(num_classes: int, embedding_dim: int) -> nn.Parameter:
    """Vectors [num_classes, embedding_dim], drawn normal with expected length 1."""
    return nn.Parameter(torch.randn(num_classes, embedding_dim) / embedding_dim**0.5)


def cosines_to(embeddings: Embeddings, proxies: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
    """Cosines between samples and class centres, in the precision of the embeddings."""
    return unit(embeddings) @ unit(proxies.to(embeddings.dtype)).T


def on_own_class(values: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n 1"]:
    """Each sample's value for its own class."""
    return values.gather(1, labels[:, None])


def with_own_class(
    values: Float[Tensor, "n c"], labels: Int[Tensor, " n"], own: Float[Tensor, "n 1"]
) -> Float[Tensor, "n c"]:
    """The values, that of each sample's own class replaced."""
    return values.scatter(1, labels[:, None], own)


def linear_logits(
    embeddings: Embeddings, proxies: Float[Tensor, "c d"], bias: Float[Tensor, " c"] | None
) -> Float[Tensor, "n c"]:
    """A linear classifier, in the precision of the embeddings."""
    products = embeddings @ proxies.to(embeddings.dtype).T
    return products if bias is None else products + bias.to(embeddings.dtype)


def check_samples(
    loss: str,
    num_classes: int,
    embeddings: Embeddings,
    labels: Labels,
    indices_tuple: IndicesTuple | None,
) -> tuple[Embeddings, Labels]:
    """Embeddings and labels, checked and widened as by `check_batch`.

    Raises ValueError for a miner's tuple and for labels outside 0..num_classes-1.
    """
    refuse_tuple(indices_tuple, loss, "it compares samples with proxies, not in pairs")
    embeddings, labels = check_batch(embeddings, labels)
    check_classes(labels, num_classes)
    return embeddings, labels


def classification_rows(
    loss: Classifier,
    embeddings: Embeddings,
    labels: Labels,
    indices_tuple: IndicesTuple | None,
    label_smoothing: float = 0.0,
) -> tuple[Embeddings, Labels, Float[Tensor, " n"]]:
    """(embeddings, labels, cross-entropy of each sample), the first two checked and widened.

    See `check_samples` for the errors.
    """
    embeddings, labels = check_samples(
        type(loss).__name__, loss.num_classes, embeddings, labels, indices_tuple
    )
    rows = F.cross_entropy(
        loss.logits(embeddings, labels), labels, reduction="none", label_smoothing=label_smoothing
    )
    return embeddings, labels, rows


def classification_loss(
    loss: Classifier,
    embeddings: Embeddings,
    labels: Labels,
    indices_tuple: IndicesTuple | None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the batch; see `check_samples` for the errors."""
    with full_precision(embeddings):
        embeddings, labels, rows = classification_rows(
            loss, embeddings, labels, indices_tuple, label_smoothing
        )
        mean = rows.mean()
    return check_finite(mean, embeddings=embeddings, proxies=loss.proxies)
