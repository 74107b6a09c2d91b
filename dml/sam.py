"""Sharpness-aware minimisation (SAM): Foret et al., "Sharpness-Aware Minimization for Efficiently
Improving Generalization", ICLR 2021, arXiv:2010.01412.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def uphill(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    r"""Within this block the weights are at w + e(w), `rho` away where the loss rises fastest.

        e(w) = rho grad L(w) / |grad L(w)|     (eq. 2 with p = 2)

    The norm is over all parameters together; those without a gradient stay. Afterwards the weights are
    bit for bit what they were, while the gradients are those of the block.
    """
    moved = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in moved if p.grad is not None]
    with kept(lambda: moved):
        if moved:
            length = torch.nn.utils.get_total_norm(gradients)
            factor = rho / length.clamp(min=torch.finfo(length.dtype).tiny)
            with torch.no_grad():
                for parameter, gradient in zip(moved, gradients, strict=True):
                    parameter.add_(gradient * factor)
        yield


@contextmanager
def kept(tensors: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Whatever this block does to these tensors is undone after it.

    tensors: lists them, in the same order at every call; the block may put others in their place.
    """
    before = [tensor.detach().clone() for tensor in tensors()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors(), before, strict=True):
                tensor.copy_(value)
