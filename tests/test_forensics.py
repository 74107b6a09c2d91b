"""The forensics callback: it changes nothing, its numbers are right, its alarms name the cause."""

import csv
import logging

import pytest
import torch
from test_run import assert_equal_weights, train, weights

from dml.forensics import batch_values, likely_cause, pair_gradients, pair_values
from dml.losses import Circle, Contrastive, MultiSimilarity, Triplet


def rows(run_dir, name):
    with (run_dir / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("loss=triplet",), "active_pairs"),
        (("loss=proxy_nca",), "proxy_use"),
        (("loss=contrastive", "memory=xbm", "memory.start_step=2"), "memory_drift"),
    ],
)
def test_weights_are_the_same_with_and_without(cache, tmp_path, more, expected):
    """A callback that drew a random number or moved a BatchNorm statistic would show here."""
    more = (*more, "trainer.max_epochs=1")
    train(cache, tmp_path / "without", *more)
    train(cache, tmp_path / "with", *more, "callbacks=forensics", "callbacks.every=2")
    assert_equal_weights(weights(tmp_path / "without"), weights(tmp_path / "with"))
    for name in (expected, "gradient", "uniformity", "between_cosine"):
        assert rows(tmp_path / "with", f"forensics/{name}"), name


def two_classes():
    vectors = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-0.2, 1.0]]), dim=1
    )
    return vectors, torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    "loss", [Contrastive(negative_margin=1.3), MultiSimilarity(), Triplet(margin=1.9), Circle()]
)
def test_gradients_of_single_pairs_add_up(loss):
    """Over all anchors of a partner: to the gradient by that partner, as a plain reference gives it."""
    generator = torch.Generator().manual_seed(0)
    vectors, labels = torch.randn(12, 6, generator=generator), torch.arange(12) % 4
    same = labels[:, None] == labels
    pairs = (*(same & ~torch.eye(12, dtype=torch.bool)).nonzero().T, *(~same).nonzero().T)
    found = pair_gradients(loss, vectors, labels, pairs)
    reference = vectors.clone().requires_grad_()
    value = loss(
        vectors,
        labels,
        reference=reference,
        reference_labels=labels,
        self_slots=torch.arange(12),
    )
    value.backward()
    assert reference.grad.abs().max() > 0
    torch.testing.assert_close(found.sum(0), reference.grad, atol=1e-5, rtol=1e-4)


def test_share_of_active_pairs_by_hand():
    """Distances between the classes: 1.41, 1.55, 1.33, 1.47; a margin of 1.4 leaves one of four, twice."""
    vectors, labels = two_classes()
    found = pair_values(Contrastive(negative_margin=1.4), vectors, labels, None)
    assert found["active_pairs"] == pytest.approx((4 + 2) / (4 + 8))
    mined = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))
    found = pair_values(Contrastive(negative_margin=1.4), vectors, labels, mined)
    assert found["active_pairs"] == 0.5
    assert found["negative_gradient"] == 0.0
    triplets = (torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([2, 3]))
    assert pair_values(Triplet(margin=0.01), vectors, labels, triplets)["active_pairs"] == 0.0


def test_between_cosine_by_hand():
    vectors, labels = two_classes()
    expected = (vectors[:2] @ vectors[2:].T).mean()
    assert batch_values(vectors, labels)["between_cosine"] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("looks", "cause"),
    [
        ([{"loss": 1.0, "gradient": float("nan")}], "not finite"),
        ([{"loss": 1.0, "between_cosine": 0.999}] * 3, "collapse"),
        ([{"loss": 0.0, "active_pairs": 0.0}] * 3, "no active pair"),
        ([{"loss": value} for value in (1.0, 3.0, 9.0)], "rises"),
        ([{"loss": 1.0, "active_pairs": 1.0}] * 3, "never met"),
        ([{"loss": 1.0, "between_cosine": 0.999}] * 2, None),
        ([{"loss": value, "active_pairs": 1.0} for value in (3.0, 2.0, 1.0)], None),
        ([{"loss": 1.0, "between_cosine": 0.3, "active_pairs": 0.5}] * 3, None),
    ],
)
def test_likely_cause(looks, cause):
    found = likely_cause(looks, 3)
    assert found is None if cause is None else cause in found


def test_alarm_in_a_run(cache, tmp_path, caplog):
    """A margin that no distance can meet: the log says so, once."""
    caplog.set_level(logging.WARNING, "dml")
    train(
        cache,
        tmp_path / "run",
        "loss=contrastive",
        "loss.negative_margin=1.99",
        "optimizer.lr=1e-12",
        "optimizer.head_lr=1e-12",
        "callbacks=forensics",
        "callbacks.every=1",
        "callbacks.patience=2",
    )
    alarms = [record.getMessage() for record in caplog.records if "alarm" in record.getMessage()]
    assert len([alarm for alarm in alarms if "never met" in alarm]) == 1
