"""BatchNorm over the global batch of several processes (SyncBatchNorm)."""

from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dml.distributed import on_gpus, world_size


class _SumOfAll(torch.autograd.Function):
    """Sum over processes, backwards as well."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(_BatchNorm):
    """BatchNorm with statistics of the global batch, for the CPU, where torch's SyncBatchNorm does not work.

    act, drop: what timm's BatchNormAct2d does after normalising.
    """

    def __init__(self, layer: _BatchNorm):
        super().__init__(
            *(layer.num_features, layer.eps, layer.momentum),
            *(layer.affine, layer.track_running_stats),
        )
        # The very tensors, so that whoever holds the parameters holds these.
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.drop = getattr(layer, "drop", nn.Identity())
        self.act = getattr(layer, "act", nn.Identity())
        self.training = layer.training

    def forward(self, input: Tensor) -> Tensor:
        """[n, c, ...] to the same shape."""
        normalised = self.normalised(input) if self.training else super().forward(input)
        return self.act(self.drop(normalised))

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes after the first two."""

    def normalised(self, features: Tensor) -> Tensor:
        """Ioffe and Szegedy's equations over the global batch."""
        x = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        own = x.new_tensor([x.numel() // x.shape[1]])
        sums = _SumOfAll.apply(torch.cat([x.sum(axes), own]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - mean.view(shape)
        variance = _SumOfAll.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self.update(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        x = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(features.dtype)

    def update(self, mean: Tensor, variance: Tensor) -> None:
        """Running statistics, as torch keeps them."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = self.momentum
        if weight is None:  # a plain mean over all batches
            weight = 1 / float(self.num_batches_tracked)
        for kept, new in ((self.running_mean, mean), (self.running_var, variance)):
            assert kept is not None
            kept.lerp_(new.to(kept.dtype), weight)


def synchronised(module: nn.Module, config: DictConfig) -> None:
    """Let every BatchNorm within take its statistics from the global batch.  Nothing to do alone.

    On GPUs by torch's layer, in timm's conversion: torch's own, and so Lightning's sync_batchnorm, drops
    the activation that timm's BatchNormAct2d ends in.  Names and tensors of the state dict stay.
    """
    if world_size() == 1:
        return
    if on_gpus(config):
        convert_sync_batchnorm(module)
        return
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, _BatchNorm):
                setattr(parent, name, SyncBatchNorm(layer))
