"""Miners return positions that our losses take, chosen by the rule they are named after."""

import pytest
import torch
from hydra.utils import instantiate

from dml import miners
from dml.losses import Circle, MultiSimilarity, Triplet


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(8).repeat_interleave(4)
    centres = torch.randn(8, 16, generator=draw).repeat_interleave(4, 0)
    return centres + torch.randn(32, 16, generator=draw), labels


def unit(x):
    return torch.nn.functional.normalize(x)


def test_none_instantiates_to_none():
    """`miner=none` is a choice like any other; the loss is then called without a tuple."""
    assert instantiate({"_target_": "dml.miners.none"}) is None


@pytest.mark.parametrize("squared", [True, False])
def test_semihard_negatives_lie_within_the_margin(batch, squared):
    """FaceNet's rule: farther than the positive, by no more than the margin, in the loss's
    distance.
    """
    x, labels = batch
    a, p, n = miners.semihard(margin=0.2, squared_distances=squared)(x, labels)
    d = torch.cdist(unit(x), unit(x)) ** (2 if squared else 1)
    gap = d[a, n] - d[a, p]
    assert len(a) > 10
    assert ((gap > 0) & (gap <= 0.2 + 1e-6)).all()
    assert (labels[a] == labels[p]).all()
    assert (labels[a] != labels[n]).all()
    assert (a != p).all()


def test_batch_hard_takes_the_extremes(batch):
    """One triplet per anchor: farthest positive, nearest negative."""
    x, labels = batch
    a, p, n = miners.batch_hard()(x, labels)
    d = torch.cdist(unit(x), unit(x))
    same = labels[:, None] == labels
    assert a.tolist() == list(range(32))
    torch.testing.assert_close(d[a, p], d.masked_fill(~same, -1).amax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(d[a, n], d.masked_fill(same, 9).amin(1), atol=1e-5, rtol=0)


def test_distance_weighted_repeats_with_the_seed(batch):
    """Drawn from torch's global generator, so a seeded run is repeatable."""
    x, labels = batch
    miner = miners.distance_weighted(cutoff=0.5, nonzero_loss_cutoff=1.4)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(torch.stack(miner(x, labels)))
    assert draws[0].equal(draws[1])
    a, p, n = draws[0]
    assert (labels[a] == labels[p]).all()
    assert (labels[a] != labels[n]).all()


def test_multi_similarity_miner_is_the_losss_own_rule(batch):
    """Mining twice by the same rule changes nothing, so the miner's pairs give the loss's value."""
    x, labels = batch
    loss = MultiSimilarity()
    pairs = miners.multi_similarity(epsilon=loss.epsilon)(x, labels)
    torch.testing.assert_close(loss(x, labels, pairs), loss(x, labels))


@pytest.mark.parametrize(
    "miner",
    [
        miners.semihard(0.2, True),
        miners.batch_hard(),
        miners.distance_weighted(0.5, 1.4),
        miners.multi_similarity(0.1),
    ],
    ids=["semihard", "batch_hard", "distance_weighted", "multi_similarity"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_miners_feed_losses_in_any_precision(batch, miner, dtype):
    """Under mixed precision embeddings are half; mining them so would choose by rounding."""
    x, labels = batch
    x = x.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen = miner(x, labels)
        again = miner(x.float(), labels)
    assert all(not index.requires_grad and index.dtype == torch.int64 for index in chosen)
    if "DistanceWeighted" not in repr(miner):
        assert all(first.equal(second) for first, second in zip(chosen, again, strict=True))
    for loss in (Circle(), Triplet()):
        value = loss(x, labels, chosen)
        value.backward()
        assert value.isfinite()


def test_miners_look_into_a_reference(batch):
    """With a memory the anchors are rows of the batch and the others rows of the memory."""
    x, labels = batch
    a, p, n = miners.batch_hard()(x[:4], labels[:4], reference=x[4:], reference_labels=labels[4:])
    assert len(a) == 0  # class 0 has no other image in the memory
    a, p, n = miners.batch_hard()(x[:4], labels[:4], reference=x[2:], reference_labels=labels[2:])
    assert (labels[2:][p] == labels[a]).all()
    assert (labels[2:][n] != labels[a]).all()
