"""Losses of pytorch-metric-learning that are offered as they are: the adapter changes nothing."""

import copy
import math

import pytest
import torch
from pytorch_metric_learning import distances, losses, reducers

from dml import build, tables
from dml.config import check, compose

NAMES = [name for name in compose.options_of("loss") if name.startswith("pml_")]
# Where the YAML says why it has another value than the library.
OTHER_VALUES = {("pml_dynamic_soft_margin", "min_val"), ("pml_dynamic_soft_margin", "num_bins")}
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


@pytest.mark.parametrize("name", NAMES)
def test_the_values_are_the_librarys_own_defaults(name):
    """Their heads say so; a release that changes one must show."""
    options = build.plain(composed(name).config)["loss"]
    kind = getattr(losses, options["loss"])
    stated = options["arguments"]
    sizes = {"num_classes", "embedding_size", "descriptors_dim"}
    needed = {key: value for key, value in stated.items() if key in sizes}
    theirs, ours = kind(**needed), kind(**stated)
    for key in stated.keys() - sizes:
        if (name, key) not in OTHER_VALUES:
            attribute = "delta" if key == "n_bins" else key
            assert getattr(theirs, attribute) == getattr(ours, attribute), key
    if options["distance"] is not None:
        distance = dict(options["distance"])
        assert type(theirs.distance).__name__ == distance.pop("name")
        assert {key: getattr(theirs.distance, key) for key in distance} == distance


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused(name):
    """What the library would make a number of, or an error without a name."""
    loss, x = build.loss(composed(name).config), batch()
    with pytest.raises(TypeError, match=r"labels must be integers"):
        loss(x, LABELS.float())
    with pytest.raises(ValueError, match=r"one label per row"):
        loss(x, LABELS[:5])
    one = torch.tensor([0])
    with pytest.raises(ValueError, match=r"\[1\] must lie in \[0, 8\)"):
        loss(x, LABELS, (one, one + 8, one + 2))
    if loss.num_classes is not None:
        with pytest.raises(ValueError, match=r"label 4 outside 0..3: num_classes=4"):
            loss(x, LABELS + 1)
    x[2] = math.nan
    with pytest.raises(ValueError, match="embeddings: row 2 of 8 not finite"):
        loss(x, LABELS)


def test_a_histogram_with_room():
    """A positive farther than a negative by 1.6 falls off the end of theirs; below both are the same."""
    loss, theirs = (
        build.loss(composed("pml_dynamic_soft_margin").config),
        losses.DynamicSoftMarginLoss(),
    )
    torch.testing.assert_close(
        loss(0.5 + batch().abs(), LABELS), theirs(0.5 + batch().abs(), LABELS)
    )
    x, labels = torch.tensor([[1.0, 0], [-1, 0], [1, 0]]), torch.tensor([0, 0, 1])
    assert loss(x, labels).isfinite()
    with pytest.raises(RuntimeError, match="out of bounds"):
        theirs(x, labels)


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
