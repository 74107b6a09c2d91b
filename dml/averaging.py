"""Averages of the weights along training, which are evaluated in place of the last ones.

The functions below are what configs/averaging/*.yaml name. Each says, after an optimizer step, how far
the average moves towards the weights of now: 0 not at all, 1 all the way.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import compress

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dml.encoder import Encoder
from dml.types import Embeddings

# (optimizer steps done, steps per epoch, steps of the run) -> share in [0, 1]
Share = Callable[[int, int, int], float]


def ema(step: int, steps_per_epoch: int, total_steps: int, *, decay: float) -> float:
    """Exponential moving average: average <- d average + (1 - d) weights, after every step.

    d rises to `decay` as (1 + n) / (10 + n) over the n steps before, so that a short run does not
    average its random start in (TensorFlow's ExponentialMovingAverage with num_updates).
    """
    del steps_per_epoch, total_steps
    return 1 - min(decay, step / (9 + step))


def swa(step: int, steps_per_epoch: int, total_steps: int, *, start: float) -> float:
    """Stochastic weight averaging: the mean of the weights at the ends of the epochs from a `start` on,
    a share of the run's steps (Izmailov et al., UAI 2018, arXiv:1803.05407).

    Before it the average is the weights at the end of the last epoch. A run's last step ends an epoch.
    """
    if step % steps_per_epoch and step != total_steps:
        return 0.0
    first = max(1, math.ceil(start * total_steps / steps_per_epoch))  # first epoch averaged
    return 1 / max(1, math.ceil(step / steps_per_epoch) - first + 1)


class AveragedEncoder(nn.Module):
    """A second encoder, whose weights are an average over those of the first.

    It starts as a copy, learns nothing, and stays in evaluation mode. BatchNorm's running statistics are
    averaged like weights, as timm does; Izmailov et al. recompute them, which is the same where they are
    frozen. Being a module, it is in the checkpoint.
    """

    def __init__(self, encoder: Encoder, share: Share):
        super().__init__()
        self.encoder = deepcopy(encoder).requires_grad_(False).eval()
        self.share = share

    def train(self, mode: bool = True) -> "AveragedEncoder":
        """Evaluation mode, always."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor) -> Embeddings:
        """Embeddings by the averaged weights."""
        return self.encoder(images)

    @torch.no_grad()
    def update(self, encoder: Encoder, step: int, steps_per_epoch: int, total_steps: int) -> None:
        """Move towards the weights that `encoder` has after `step` optimizer steps."""
        share = self.share(step, steps_per_epoch, total_steps)
        if share == 0:
            return
        averages, weights = (
            [*module.parameters(), *module.buffers()] for module in (self.encoder, encoder)
        )
        real = [average.is_floating_point() for average in averages]
        move = get_ema_multi_avg_fn(1 - share)
        move(list(compress(averages, real)), list(compress(weights, real)), None)
        for average, weight, is_real in zip(averages, weights, real, strict=True):
            if not is_real:  # BatchNorm's count of batches
                average.copy_(weight)
