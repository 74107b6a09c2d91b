"""Losses of pytorch-metric-learning that are offered as they are: the adapter changes nothing."""

import copy

import pytest
import torch
from pytorch_metric_learning import distances, losses, reducers

from dml import build, tables
from dml.config import check, compose

NAMES = [name for name in compose.options_of("loss") if name.startswith("pml_")]
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])


def batch() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def composed(name: str):
    found, problems = compose.compose_all([f"loss={name}", "head.dim=4"])
    assert not problems
    found.config.data.num_train_classes = 4
    return found


@pytest.mark.parametrize("name", NAMES)
def test_composes_and_equals_the_library(name):
    """Class, distance and reducer as the YAML says, finite, with a gradient, twice in a row."""
    found = composed(name)
    assert not check.node_problems(found.config, "loss") + check.rules(found)
    assert not build.loss_parts(found.config)["loss"].verified
    torch.manual_seed(0)
    loss = build.loss(found.config)
    options = build.plain(found.config)["loss"]
    distance, reducer = options["distance"], dict(options["reducer"])
    arguments = {
        **options["arguments"],
        "reducer": getattr(reducers, reducer.pop("name"))(**reducer),
    }
    if distance is not None:
        kind = getattr(distances, distance.pop("name"))
        arguments["distance"] = kind(**distance)
    torch.manual_seed(0)
    theirs = getattr(losses, options["loss"])(**arguments)
    x, y = batch().requires_grad_(), batch().requires_grad_()
    value, expected = loss(x, LABELS), theirs(y, LABELS).squeeze()
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(x.grad, y.grad)
    assert x.grad.isfinite().all()
    assert x.grad.any()
    loss(batch().requires_grad_(), LABELS).backward()


def test_a_running_histogram_is_in_the_checkpoint():
    loss = build.loss(composed("pml_dynamic_soft_margin").config)
    fresh = copy.deepcopy(loss)
    loss(batch(), LABELS)
    assert "loss.hist_" in loss.state_dict()
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(fresh(batch(), LABELS), loss(batch(), LABELS))


def test_the_start_table_says_that_it_is_not_verified(capsys):
    tables.choices(composed("pml_nca"))
    assert "pml_nca (not verified here)" in capsys.readouterr().out
