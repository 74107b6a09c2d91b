"""The cross-batch memory: what it holds, whom it leaves out, and that a checkpoint keeps all of it."""

import pytest
import torch
from test_run import StopAt, assert_equal_weights, train, weights

from dml import cli, run
from dml.callbacks import Interrupted
from dml.config import check, compose
from dml.errors import ConfigurationError
from dml.losses import Circle, Contrastive, Triplet
from dml.memory import CrossBatchMemory


def draw(n: int, dim: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_the_queue_wraps_around():
    """The oldest go first, in order, also when a batch crosses the end (public code overwrites the tail)."""
    memory = CrossBatchMemory(5, 4)
    x = draw(9)
    first = memory.enqueue(x[:3], torch.tensor([0, 1, 2]))
    assert first["reference_labels"].tolist() == [0, 1, 2]
    assert first["self_slots"].tolist() == [0, 1, 2]
    second = memory.enqueue(x[3:6], torch.tensor([3, 4, 5]))
    assert second["self_slots"].tolist() == [3, 4, 0]
    assert second["reference_labels"].tolist() == [5, 1, 2, 3, 4]
    third = memory.enqueue(x[6:9], torch.tensor([6, 7, 8]))
    assert third["self_slots"].tolist() == [1, 2, 3]
    assert third["reference"].equal(x[[5, 6, 7, 8, 4]])


def test_class_0_in_the_last_slot_does_not_empty_the_memory():
    """Public code takes a 0 in the last slot for a queue not yet full."""
    memory = CrossBatchMemory(4, 4)
    memory.enqueue(draw(2), torch.tensor([1, 1]))
    full = memory.enqueue(draw(2), torch.tensor([0, 0]))
    assert full["reference_labels"].tolist() == [1, 1, 0, 0]
    again = memory.enqueue(draw(1), torch.tensor([0]))
    assert again["reference_labels"].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("loss", [Contrastive(), Circle(), Triplet()])
def test_a_memory_of_the_batch_alone_is_the_batch(loss):
    """The anchor's own copy is left out by its slot; exact duplicates of it are not."""
    x = draw(6).double()
    x[1] = x[0]
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    memory = CrossBatchMemory(10, 4).double()
    torch.testing.assert_close(loss(x, labels, **memory.enqueue(x, labels)), loss(x, labels))


def test_what_is_remembered_has_no_gradient():
    x = draw(4).requires_grad_()
    columns = CrossBatchMemory(4, 4).enqueue(x, torch.tensor([0, 0, 1, 1]))
    assert not columns["reference"].requires_grad


def test_a_checkpoint_holds_all_of_it():
    """Queue, labels, next slot and fill level: what is loaded goes on as the original does."""
    memory, loaded = CrossBatchMemory(5, 4), CrossBatchMemory(5, 4)
    memory.enqueue(draw(4), torch.arange(4))
    loaded.load_state_dict(memory.state_dict())
    x, labels = draw(3, seed=1), torch.arange(3)
    ours, theirs = memory.enqueue(x, labels), loaded.enqueue(x, labels)
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_a_batch_larger_than_the_queue_is_refused(cache):
    with pytest.raises(ValueError, match="a batch of 3 does not fit a memory of 2 slots"):
        CrossBatchMemory(2, 4).enqueue(draw(3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match=r"memory.size=63.*holds less than one batch \(64"):
        cli.checked(["memory=xbm", "memory.size=63", f"data.root={cache}"])


def test_a_memory_that_is_never_used_is_refused(cache):
    with pytest.raises(
        ConfigurationError, match=r"start_step=100.*never reached: the run has 10 steps"
    ):
        cli.checked(["memory=xbm", "trainer.max_steps=10", f"data.root={cache}"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["loss=proxy_nca"], "compares images with proxies, and a memory holds images"),
        (["loss=pml_nca"], "cannot leave an image's own copy"),
        (["loss=sum"], None),
        (["loss=sum", "loss.first=proxy_nca", "miner=none"], "compares images with proxies"),
        (["loss=triplet"], None),
    ],
)
def test_which_losses_take_a_memory(words, told):
    composed, problems = compose.compose_all([*words, "memory=xbm"])
    assert not problems
    found = {p.where: p.what for p in check.rules(composed)}
    assert list(found) == ([] if told is None else ["memory=xbm"])
    assert told is None or told in found["memory=xbm"]


def test_55000_slots_take_one_step():
    """The size of the authors' SOP configuration."""
    memory = CrossBatchMemory(55_000, 128)
    memory.embeddings.normal_(generator=torch.Generator().manual_seed(1))
    memory.labels.copy_(torch.arange(55_000) % 11_318)
    memory.filled.fill_(55_000)
    memory.next_slot.fill_(54_990)
    x, labels = draw(64, 128).requires_grad_(), torch.arange(16).repeat_interleave(4)
    Contrastive()(x, labels, **memory.enqueue(x, labels)).backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_a_stopped_run_with_a_memory_resumes_to_the_same_result(cache, tmp_path, monkeypatch):
    """Queue, next slot and fill level are in the checkpoint (pytorch-metric-learning loses the last two)."""
    changed = (
        "loss=triplet",
        "memory=xbm",
        "memory.size=100",
        "memory.start_step=2",
        "regularizer=mdr",
    )
    whole = train(cache, tmp_path / "whole", *changed)
    monkeypatch.setattr(StopAt, "step", 8)
    with monkeypatch.context() as patch:
        patch.setattr(run, "StopOnSignal", StopAt)
        with pytest.raises(Interrupted):
            train(cache, tmp_path / "part", *changed)
    resumed = train(cache, tmp_path / "part", *changed, "ckpt_path=last")
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert_equal_weights(ours, theirs)
    assert ours["memory.filled"] == 100
    assert (ours["regularizer.levels"] != torch.tensor([-3.0, 0, 3])).all()
    assert resumed["metrics"] == whole["metrics"]
