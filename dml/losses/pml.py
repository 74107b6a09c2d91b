"""Losses of pytorch-metric-learning that have no verified counterpart here.

`loss=pml_<name>` trains with the library's own class. Class, distance and reducer stand in the YAML, so
that nothing depends on the library's defaults; whether they compute what their papers say was not
checked. Left out are the library's two losses that take no labels: VICRegLoss compares two views of
an image, ManifoldLoss is unsupervised. A memory does not go with them: they cannot leave out an
anchor's own copy in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.pairs import (
    check_classes,
    check_finite,
    check_rows,
    check_tuple,
    compare,
    full_precision,
)
from dml.types import Embeddings, IndicesTuple, Labels


class PmlLoss(nn.Module):
    """A loss class of pytorch-metric-learning, called in float32 or better.

    Args:
        loss: name of a class in pytorch_metric_learning.losses.
        arguments: its own arguments.
        distance: {name: class in pytorch_metric_learning.distances, and its arguments}, or None where
            the loss uses none.
        reducer: {name: class in pytorch_metric_learning.reducers, and its arguments}.
        state: names of tensors that the class changes while training though they are no buffers.
            They become buffers, hence part of the checkpoint, and lose their graph after each step.

    Shapes: embeddings [n, d], labels [n] -> scalar.
    """

    def __init__(
        self,
        loss: str,
        arguments: Mapping[str, Any],
        distance: Mapping[str, Any] | None,
        reducer: Mapping[str, Any],
        state: Sequence[str] = (),
    ):
        from pytorch_metric_learning import distances, losses, reducers

        super().__init__()
        more = {} if distance is None else {"distance": named(distances, distance)}
        self.loss = getattr(losses, loss)(**arguments, reducer=named(reducers, reducer), **more)
        self.num_classes: int | None = arguments.get("num_classes")
        self.state = tuple(state)
        for name in self.state:
            tensor = getattr(self.loss, name)
            delattr(self.loss, name)
            self.loss.register_buffer(name, tensor)

    def forward(
        self, embeddings: Embeddings, labels: Labels, indices_tuple: IndicesTuple | None = None
    ) -> Float[Tensor, ""]:
        """Loss of a batch; ValueError for a label that is no class, or a tuple of another batch."""
        with full_precision(embeddings):
            batch = compare(embeddings, labels)
            check_rows(batch.embeddings, "embeddings")  # some classes take NaN for an index
            if self.num_classes is not None:
                check_classes(batch.labels, self.num_classes)
            chosen = None if indices_tuple is None else check_tuple(indices_tuple, batch)
            value = self.loss(batch.embeddings, batch.labels, chosen)
        for name in self.state:
            setattr(self.loss, name, getattr(self.loss, name).detach())
        return check_finite(value.squeeze(), embeddings=batch.embeddings)


def named(module: Any, options: Mapping[str, Any]) -> Any:
    """An object of the class `options["name"]`, built with the other options."""
    arguments = dict(options)
    return getattr(module, arguments.pop("name"))(**arguments)
