"""Parameter groups and learning-rate schedules in optimizer steps."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from dml.encoder import Encoder


class Learner(NamedTuple):
    """A module beside trunk and head that learns at head_lr * lr_scale."""

    name: str
    module: nn.Module
    lr_scale: float
    weight_decay: float


def parameter_groups(
    encoder: Encoder,
    loss: nn.Module,
    *,
    lr: float,
    head_lr: float,
    weight_decay: float,
    loss_lr_scale: float = 1.0,
    loss_weight_decay: float = 0.0,
    more: Sequence[Learner] = (),
    layer_decay: float | None = None,
) -> list[dict]:
    """Groups for a torch optimizer: trunk, head and the loss's own parameters.

    lr: trunk.  head_lr: head.  The loss's parameters (proxies, learned margins) learn at
    head_lr * loss_lr_scale.  more: modules with rates of their own, a regulariser or the parts of a
    sum; what they hold of the loss is theirs.  weight_decay falls on matrices and kernels only, not on
    biases and norms.  layer_decay: factor on the trunk's rate from each layer to the one below it; the
    last layer learns at lr (as in BEiT, arXiv:2106.08254; layers as timm counts them).

    Raises AssertionError when a trainable parameter is in no group or in two: a programming error that
    would leave, say, proxies untrained in silence (pitfall L4).
    """
    groups: list[dict] = []
    theirs = {id(p) for learner in more for p in learner.module.parameters()}
    losses_own = [p for p in loss.parameters() if id(p) not in theirs]
    for name, parameters, rate, decay in (
        *trunk_layers(encoder, lr, weight_decay, layer_decay),
        ("head", list(encoder.head.parameters()), head_lr, weight_decay),
        ("loss", losses_own, head_lr * loss_lr_scale, loss_weight_decay),
        *(
            (m.name, list(m.module.parameters()), head_lr * m.lr_scale, m.weight_decay)
            for m in more
        ),
    ):
        matrices = [p for p in parameters if p.ndim >= 2]
        vectors = [p for p in parameters if p.ndim < 2]
        if matrices:
            groups.append({"params": matrices, "lr": rate, "weight_decay": decay, "name": name})
        if vectors:
            groups.append(
                {"params": vectors, "lr": rate, "weight_decay": 0.0, "name": f"{name} vectors"}
            )
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    modules = (encoder, loss, *(learner.module for learner in more))
    trainable = {id(p) for module in modules for p in module.parameters()}
    assert len(grouped) == len(set(grouped)), "a parameter is in two optimizer groups"
    assert set(grouped) == trainable, "a parameter is in no optimizer group"
    return groups


def trunk_layers(
    encoder: Encoder, lr: float, weight_decay: float, layer_decay: float | None
) -> list[tuple[str, list[nn.Parameter], float, float]]:
    """(name, parameters, rate, weight decay) of each layer of the trunk from below, or of all of it."""
    trunk = list(encoder.trunk.parameters())
    if layer_decay is None:
        return [("trunk", trunk, lr, weight_decay)]
    scales = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(encoder.trunk.model, layer_decay=layer_decay)
        for parameter in group["params"]
    }
    layers: dict[float, list[nn.Parameter]] = {}
    for parameter in trunk:
        # timm lists what learns; fixed position embeddings are in no layer and have no gradient
        layers.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    return [
        (f"trunk x {scale:.3g}", layers[scale], lr * scale, weight_decay)
        for scale in sorted(layers)
    ]


def warm_up(step: int, warmup_steps: int) -> float:
    """Rises linearly to 1 at `warmup_steps`; the first step is not 0, for it would train nothing."""
    return min(1.0, (step + 1) / (warmup_steps + 1)) if warmup_steps else 1.0


def constant(total_steps: int, *, warmup_steps: int) -> Callable[[int], float]:
    """Factor 1 after the warm-up."""
    del total_steps
    return lambda step: warm_up(step, warmup_steps)


def cosine(total_steps: int, *, warmup_steps: int, final: float) -> Callable[[int], float]:
    """Half a cosine from 1 after the warm-up to `final` at the last step (SGDR, arXiv:1608.03983)."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warm_up(step, warmup_steps)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def step(
    total_steps: int, *, warmup_steps: int, every: int, gamma: float
) -> Callable[[int], float]:
    """Times `gamma` after each `every` steps, counted from the start."""
    del total_steps
    return lambda number: warm_up(number, warmup_steps) * gamma ** (number // every)


def milestones(
    total_steps: int, *, warmup_steps: int, milestones: Sequence[int], gamma: float
) -> Callable[[int], float]:
    """Times `gamma` at each of the steps `milestones`, counted from the start."""
    del total_steps
    return lambda number: warm_up(number, warmup_steps) * gamma ** bisect_right(milestones, number)
