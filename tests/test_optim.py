"""Every trainable parameter learns, at the rate it should, and schedules go where they say."""

import math

import pytest
import torch
from torch import nn

from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.losses import Circle, ProxyNCA
from dml.optim import constant, cosine, milestones, parameter_groups, step


@pytest.fixture
def encoder():
    trunk = Trunk("test_resnet")
    return Encoder(trunk, Head(pooled_features(trunk, "gem"), 8, "gem"))


def rates(groups, module):
    """Learning rates and weight decays under which a module's parameters stand."""
    own = {id(p) for p in module.parameters()}
    return {
        (g["lr"], g["weight_decay"], p.ndim >= 2)
        for g in groups
        for p in g["params"]
        if id(p) in own
    }


def test_trunk_head_and_loss_learn_at_their_own_rates(encoder):
    loss = ProxyNCA(5, 8)
    groups = parameter_groups(
        encoder,
        loss,
        lr=1e-4,
        head_lr=1e-3,
        weight_decay=1e-2,
        loss_lr_scale=100,
        loss_weight_decay=0,
    )
    assert rates(groups, encoder.trunk) == {(1e-4, 1e-2, True), (1e-4, 0, False)}
    assert rates(groups, encoder.head) == {(1e-3, 1e-2, True), (1e-3, 0, False)}
    assert rates(groups, loss) == {(1e-3 * 100, 0, True)}


def test_every_parameter_is_in_exactly_one_group(encoder):
    """Proxies that were in no optimizer have cost others their results (pitfall L4)."""
    loss = ProxyNCA(5, 8)
    groups = parameter_groups(encoder, loss, lr=1, head_lr=1, weight_decay=0)
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for m in (encoder, loss) for p in m.parameters())


def test_layer_decay_slows_the_trunk_from_above():
    """The last block and norm at the full rate, each layer below at half of that above."""
    trunk = Trunk("test_vit", kwargs={"img_size": 32})
    encoder = Encoder(trunk, Head(pooled_features(trunk, "avg"), 8))
    rest = {"lr": 1e-4, "head_lr": 1e-3, "weight_decay": 1e-2}
    groups = parameter_groups(encoder, Circle(), **rest, layer_decay=0.5)
    depth = len(trunk.model.blocks)

    def rate(module) -> set[float]:
        return {round(lr / 1e-4, 9) for lr, _, _ in rates(groups, module)}

    assert depth > 1
    assert rate(trunk.model.norm) == {1}
    assert [rate(block) for block in trunk.model.blocks] == [
        {0.5 ** (depth - 1 - k)} for k in range(depth)
    ]
    assert rate(trunk.model.patch_embed) == {0.5**depth}
    assert rates(groups, encoder.head) == {(1e-3, 1e-2, True), (1e-3, 0, False)}
    assert {decay for _, decay, is_matrix in rates(groups, trunk) if not is_matrix} == {0}
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in encoder.parameters())
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)  # learning rates are logged by these


def test_layer_decay_of_one_changes_no_rate(encoder):
    rest = {"lr": 1e-4, "head_lr": 1e-3, "weight_decay": 1e-2}
    with_it = parameter_groups(encoder, Circle(), **rest, layer_decay=1.0)
    assert {g["lr"] for g in with_it if g["name"].startswith("trunk")} == {1e-4}
    assert rates(with_it, encoder.trunk) == rates(
        parameter_groups(encoder, Circle(), **rest), encoder.trunk
    )


def test_a_parameter_outside_trunk_and_head_is_noticed(encoder):
    encoder.stray = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="no optimizer group"):
        parameter_groups(encoder, Circle(), lr=1, head_lr=1, weight_decay=0)


def test_proxies_move_with_one_step(encoder):
    loss = ProxyNCA(5, 8)
    before = loss.proxies.detach().clone()
    optimizer = torch.optim.AdamW(
        parameter_groups(encoder, loss, lr=1e-3, head_lr=1e-3, weight_decay=0)
    )
    loss(encoder(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert (loss.proxies != before).all()


def test_warm_up_rises_linearly_and_the_first_step_trains():
    factor = constant(100, warmup_steps=3)
    assert [factor(i) for i in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_cosine_by_hand():
    factor = cosine(10, warmup_steps=2, final=0.1)
    assert factor(2) == pytest.approx(1)
    assert factor(6) == pytest.approx(0.55)
    assert factor(10) == pytest.approx(0.1)
    assert factor(12) == pytest.approx(0.1)
    assert factor(4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_steps_fall_when_they_should():
    factor = step(100, warmup_steps=0, every=10, gamma=0.5)
    assert [factor(i) for i in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]


def test_milestones_fall_when_they_should():
    factor = milestones(100, warmup_steps=0, milestones=[10, 30], gamma=0.5)
    assert [factor(step) for step in (0, 9, 10, 29, 30, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    warm = milestones(100, warmup_steps=4, milestones=[2], gamma=0.5)
    assert [warm(step) for step in (0, 1, 2, 4)] == [0.2, 0.4, 0.3, 0.5]
