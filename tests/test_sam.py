"""Sharpness-aware minimisation: the step of the paper, and nothing counted twice."""

import pytest
import torch
from test_run import assert_equal_weights
from tiny_training import assert_resumes, batches, fit, learned, make_module
from torch import nn

from dml.losses import Contrastive
from dml.losses.spherical_embedding_constraint import SphericalEmbeddingConstraint
from dml.memory import CrossBatchMemory
from dml.sam import kept, uphill


def test_uphill_by_hand():
    """f(w) = w^2 / 2 for two parameters: the gradient is w, so e = rho w / |w| over both together."""
    first = nn.Parameter(torch.tensor([3.0]))
    second = nn.Parameter(torch.tensor([[4.0]]))
    still = nn.Parameter(torch.tensor([1.0]))
    parameters = [first, second, still]

    def value():
        return (first.square().sum() + second.square().sum()) / 2

    value().backward()
    with uphill(parameters, rho=0.5):
        assert [p.item() for p in parameters] == pytest.approx([3 + 0.3, 4 + 0.4, 1])
        first.grad = second.grad = None
        value().backward()
    assert [p.item() for p in parameters] == [3, 4, 1]
    assert [first.grad.item(), second.grad.item()] == pytest.approx([3.3, 4.4])


def test_a_flat_place_is_left_alone():
    weight = nn.Parameter(torch.ones(3))
    (0 * weight).sum().backward()
    with uphill([weight], rho=0.5):
        assert weight.tolist() == [1, 1, 1]


def test_what_is_kept_comes_back_also_after_an_error():
    tensor = torch.ones(2)

    def fails():
        with kept(lambda: [tensor]):
            tensor.zero_()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert tensor.tolist() == [1, 1]


def test_a_step_equals_one_written_out():
    """Two passes, the second gradient applied at the first weights, clipping the second only."""
    module, twin = make_module(sam_rho=0.1), make_module()
    data = batches(1)[0]
    fit(module, [data], gradient_clip_val=0.02)
    twin.encoder.train()
    parameters = list(twin.encoder.parameters())
    before = [p.detach().clone() for p in parameters]

    def gradients():
        loss = twin.loss(twin.encoder(data.images), data.labels)
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    first = gradients()
    length = torch.stack([g.norm() for g in first if g is not None]).norm()
    with torch.no_grad():
        for p, g in zip(parameters, first, strict=True):
            p += 0 if g is None else 0.1 * g / length
    second = gradients()
    norm = torch.stack([g.norm() for g in second if g is not None]).norm()
    assert norm > 0.02  # clipping has something to do
    with torch.no_grad():
        for p, old, g in zip(parameters, before, second, strict=True):
            step = 0 if g is None else 0.01 / 3 * g * 0.02 / norm  # warm-up: a third of the rate
            p.copy_(old - step)
    for one, other in zip(module.encoder.parameters(), parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    moved = [(p - old).norm() for p, old in zip(module.encoder.parameters(), before, strict=True)]
    assert sum(moved) > 0


def test_the_second_pass_leaves_no_trace_in_buffers():
    """BatchNorm statistics, running means and the memory are those of one pass at the first weights."""
    data = batches(1)
    modules = []
    for rho in (None, 0.1):
        memory, regularizer = CrossBatchMemory(12, 8), SphericalEmbeddingConstraint(momentum=0.5)
        more = {"memory": memory, "regularizer": regularizer, "sam_rho": rho}
        module = make_module(loss=Contrastive(), freeze_bn=False, **more)
        fit(module, data)
        modules.append(module)
    plain, sharp = (dict(module.named_buffers()) for module in modules)
    assert int(sharp["memory.filled"]) == 6
    assert_equal_weights(plain, sharp)
    assert not torch.equal(*(module.encoder.head.linear.weight for module in modules))


def test_both_passes_draw_the_same_random_numbers(monkeypatch):
    """Else the second gradient would be of other dropped paths."""
    module = make_module(sam_rho=1e-12, drop_rate=0.5)
    seen = []
    vectors = module.train_vectors

    def watched(images):
        seen.append(vectors(images))
        return seen[-1]

    module.train_vectors = watched
    fit(module, batches(2))
    first, second, third, _ = seen
    torch.testing.assert_close(first, second)
    assert not torch.equal(first, third)


def test_two_halves_make_the_same_weights_as_one_run(tmp_path):
    def make():
        memory = CrossBatchMemory(20, 8, start_step=2)
        return make_module(sam_rho=0.1, freeze_bn=False, drop_rate=0.2, memory=memory)

    assert_resumes(make, tmp_path)


def test_it_makes_a_difference():
    plain, sharp = make_module(), make_module(sam_rho=0.5)
    for module in (plain, sharp):
        fit(module, batches(3))
    assert any(not torch.equal(value, learned(sharp)[key]) for key, value in learned(plain).items())
