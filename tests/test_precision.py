"""Mixed precision reaches the trunk and stops before the head and the loss; compiling changes no name."""

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import assert_resumes, batches, fit, learned, make_module
from torch import nn

from dml import hardware
from dml.config import check, compose
from dml.errors import ConfigurationError
from dml.losses import Contrastive
from dml.losses.l2 import L2
from dml.memory import CrossBatchMemory
from dml.miners import multi_similarity


class Watching(nn.Module):
    """A loss that notes what reaches it."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = Contrastive(), []

    def forward(self, embeddings, labels, chosen=None, **columns):
        reference = columns.get("reference", embeddings)
        self.seen.append((embeddings.dtype, reference.dtype))
        return self.inner(embeddings, labels, chosen, **columns)


@pytest.mark.parametrize(
    ("precision", "trunk", "loss"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("64-true", torch.float64, torch.float64),
    ],
)
def test_the_trunk_computes_in_the_precision_and_the_loss_no_lower_than_float32(
    precision, trunk, loss
):
    watching = Watching()
    more = {"miner": multi_similarity(0.1), "regularizer": L2(0.1)}
    module = make_module(loss=watching, memory=CrossBatchMemory(20, 8), **more)
    convolved, projected = set(), set()
    first = next(m for m in module.encoder.trunk.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda _m, _i, out: convolved.add(out.dtype))
    module.encoder.head.linear.register_forward_hook(lambda _m, _i, out: projected.add(out.dtype))
    fit(module, batches(2), precision=precision)
    assert convolved == {trunk}
    assert projected == {loss}
    assert len(watching.seen) == 4  # two batches, each against itself and against the memory
    assert {dtype for pair in watching.seen for dtype in pair} == {loss}
    assert {p.dtype for p in module.parameters()} == {loss}  # weights are not rounded


def test_bf16_trains_to_nearly_the_same_weights():
    """The same direction as float32: a wrong cast would go elsewhere."""
    start = learned(make_module())
    trained = []
    for precision in ("32-true", "bf16-mixed"):
        module = make_module(lr=0.05)
        fit(module, batches(3), precision=precision)
        trained.append(learned(module))
    moves = [
        torch.cat([(t[k] - v).flatten() for k, v in start.items() if v.is_floating_point()])
        for t in trained
    ]
    assert torch.cosine_similarity(*moves, dim=0) > 0.9
    assert not torch.equal(*moves)


def test_a_bf16_run_resumes_to_the_same_weights(tmp_path):
    assert_resumes(partial(make_module, drop_rate=0.2), tmp_path, precision="bf16-mixed")


def test_clipping_by_value_and_by_norm():
    """Plain SGD at a constant rate moves by rate x clipped gradient."""
    start = learned(make_module())
    for algorithm in ("value", "norm"):
        module = make_module(lr=1.0)
        fit(
            module, batches(1), gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm
        )  # warm-up: a third of the rate
        moves = [3 * (p.detach() - start[name]) for name, p in module.named_parameters()]
        if algorithm == "value":
            largest = max(move.abs().max().item() for move in moves)
            assert largest == pytest.approx(1e-3, rel=1e-3)
            assert sum(move.square().sum() for move in moves) > 4e-6
        else:
            length = torch.stack([move.norm() for move in moves]).norm().item()
            assert length == pytest.approx(1e-3, rel=1e-2)


# ---------------------------------------------------------------- what the machine cannot do


def trainer_config(**values):
    base = {"accelerator": "auto", "precision": "32-true", "compile": False}
    return OmegaConf.create({"trainer": base | values})


def test_half_precision_on_a_cpu_is_refused_before_torch_is_imported():
    composed, problems = compose.compose_all(
        ["trainer.precision=16-mixed", "trainer.accelerator=cpu"]
    )
    assert not problems
    found = {problem.where: problem.what for problem in check.rules(composed)}
    assert "bf16-mixed" in found["trainer.precision=16-mixed"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
def test_half_precision_is_refused_where_auto_finds_no_gpu():
    """Lightning would switch to bfloat16 with a line in the log."""
    with pytest.raises(ConfigurationError, match="needs a GPU"):
        hardware.check_hardware(trainer_config(precision="16-mixed"))
    hardware.check_hardware(trainer_config(precision="bf16-mixed"))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_there_is_refused(accelerator):
    with pytest.raises(ConfigurationError, match=rf"trainer\.accelerator={accelerator}"):
        hardware.check_hardware(trainer_config(accelerator=accelerator))


def test_a_machine_without_a_compiler_is_told(monkeypatch):
    def fails(function):
        def call(*args):
            raise RuntimeError("InvalidCxxCompiler: no compiler found")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ConfigurationError, match=r"trainer\.compile=true.*no compiler found"):
        hardware.check_hardware(trainer_config(accelerator="cpu", compile=True))


# ---------------------------------------------------------------- torch.compile


@pytest.mark.slow  # the compiler takes most of a minute
def test_compiled_training_is_training_and_keeps_its_names():
    """Evaluation and checkpoint do not know of it; chunks and SAM go through it."""
    data = batches(2)
    for more in ({}, {"batch_chunks": 2, "sam_rho": 0.05}):
        torch.compiler.reset()
        plain, compiled = make_module(**more), make_module(**more, compiled=True)
        for module in (plain, compiled):
            fit(module, data)
        expected, found = learned(plain), learned(compiled)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)
