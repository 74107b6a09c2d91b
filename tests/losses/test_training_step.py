"""What a training step makes of loss, memory and regulariser; without a trainer."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from dml.losses import SupCon
from dml.losses.l2 import L2
from dml.memory import CrossBatchMemory
from dml.module import DmlModule

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


class Vectors(torch.nn.Module):
    """An encoder whose images are vectors already."""

    def vectors(self, images):
        return images

    def scale(self, vectors):
        return normalize(vectors)


def images(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def step(number: int, x: torch.Tensor, **extras) -> torch.Tensor:
    """The loss of optimizer step `number` on a batch."""

    class Numbered(DmlModule):
        global_step = number
        trainer = SimpleNamespace(log_every_n_steps=100)  # rates would be read off its optimizer

    module = Numbered(
        Vectors(),
        SupCon(),
        miner=None,
        optimizer=None,
        schedule=None,
        evaluation={},
        bad_images=SimpleNamespace(check=lambda batch: None),
        seed=0,
        **extras,
    )
    batch = SimpleNamespace(images=x, labels=LABELS, ids=torch.arange(len(x)))
    return module.training_step(batch, 0)


def test_before_its_start_step_the_memory_rests():
    """Neither read nor filled: the first embeddings drift too fast to be worth keeping."""
    memory = CrossBatchMemory(12, 4, start_step=3)
    torch.testing.assert_close(
        step(2, images(), memory=memory), SupCon()(normalize(images()), LABELS)
    )
    assert memory.filled == 0
    step(3, images(), memory=memory)
    assert memory.filled == 6


def test_the_memory_adds_a_weighted_term():
    """Batch against batch, and with its weight batch against memory, the own copies left out."""
    memory = CrossBatchMemory(12, 4, weight=0.5)
    step(0, images(1), memory=memory)
    batch, before = normalize(images()), normalize(images(1))
    loss = SupCon()
    remembered = loss(
        batch,
        LABELS,
        reference=torch.cat([before, batch]),
        reference_labels=LABELS.repeat(2),
        self_slots=torch.arange(6, 12),
    )
    expected = loss(batch, LABELS) + 0.5 * remembered
    torch.testing.assert_close(step(1, images(), memory=memory), expected)


def test_a_regularizer_sees_lengths():
    """After normalisation all lengths are 1 and there is nothing left to regularise."""
    own = step(0, images(), regularizer=L2(0.1)) - step(0, images())
    torch.testing.assert_close(own, 0.1 * images().square().sum(1).mean())
