"""Regularisers equal loops written from their formulas, value and gradient, and keep what they learn."""

import copy
import dataclasses
import inspect
import math

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from loss_cases import drawn_batches, value_and_gradients
from omegaconf import OmegaConf

from dml import build
from dml.config import check, compose, extras
from dml.losses.l2 import L2
from dml.losses.multi_level_distance import MultiLevelDistance
from dml.losses.rho import Rho
from dml.losses.spherical_embedding_constraint import SphericalEmbeddingConstraint

extras.register(ConfigStore.instance())
BATCHES = drawn_batches()
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def l2_loops(x, weight):
    return weight * sum((v * v).sum() for v in x) / len(x)


def sec_loops(x, weight):
    lengths = [(v * v).sum().sqrt() for v in x]
    mean = sum(lengths).detach() / len(x)
    return weight * sum((length - mean) ** 2 for length in lengths) / len(x)


def mdr_loops(x, levels, weight, level_weight, normalize):
    """The first batch, whose own mean and deviation are the running ones."""
    total = level_weight * sum(s * s for s in levels) + 0 * x.sum()
    if len(x) < 3:
        return total
    if normalize:
        x = [v / (v * v).sum().sqrt() for v in x]
    found = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            square = ((x[i] - x[j]) ** 2).sum()
            found.append(square.sqrt() if square > 1e-14 else 0 * square)
    mean = sum(found).detach() / len(found)
    deviation = (sum((d.detach() - mean) ** 2 for d in found) / (len(found) - 1)).sqrt()
    terms = [min(abs((d - mean) / max(deviation, 1e-6) - s) for s in levels) for d in found]
    return total + weight * sum(terms) / len(terms)


def assert_equal(ours, theirs):
    for one, other in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("kind", "x", "labels"), BATCHES, ids=[kind for kind, *_ in BATCHES])
def test_equal_the_loops(kind, x, labels):
    for ours, loops in (
        (L2(0.3), lambda x: l2_loops(x, 0.3)),
        (SphericalEmbeddingConstraint(0.7), lambda x: sec_loops(x, 0.7)),
    ):
        loss = ours.double()
        found = value_and_gradients(lambda x, loss=loss: loss(x, labels), x)
        assert_equal(found, value_and_gradients(loops, x))
    for normalize in (False, True):
        loss = MultiLevelDistance(0.4, normalize=normalize).double()
        levels = loss.levels.detach().clone().requires_grad_()
        found = value_and_gradients(lambda x, loss=loss: loss(x, labels), x, [loss.levels])
        loops = value_and_gradients(
            lambda x, levels=levels, normalize=normalize: mdr_loops(
                x, levels, 0.4, 0.01, normalize
            ),
            x,
            [levels],
        )
        assert_equal(found, loops)


def make(name: str, **options):
    """A regulariser with running statistics, by the name of its file."""
    return {"sec": SphericalEmbeddingConstraint, "mdr": MultiLevelDistance}[name](**options)


@pytest.mark.parametrize("name", ["sec", "mdr"])
def test_running_means_are_kept(name):
    """In the state dict, so that a resumed run goes on with them; untouched in evaluation."""
    loss = make(name, momentum=0.4)
    draw = torch.Generator().manual_seed(0)
    for scale in (1, 5):
        loss(scale * torch.randn(6, 4, generator=draw), LABELS)
    x = torch.randn(6, 4, generator=draw)
    assert make(name, momentum=0.4)(x, LABELS) != loss.eval()(x, LABELS)
    fresh = make(name, momentum=0.4)
    fresh.load_state_dict(loss.state_dict())
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    assert fresh(x, LABELS) == loss(x, LABELS)
    assert all(value.equal(before[key]) for key, value in loss.state_dict().items())


def test_the_running_mean_by_hand():
    loss = SphericalEmbeddingConstraint(momentum=0.25)
    loss(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1]))
    assert loss.mean_length == 3
    value = loss(torch.tensor([[7.0]]), torch.tensor([0]))
    assert loss.mean_length == 4
    assert value == 9


@pytest.mark.parametrize("name", ["sec", "mdr"])
def test_running_statistics_have_no_gradient(name):
    """A batch moves towards its statistics; the statistics are not drawn to the batch."""
    loss = make(name, momentum=0.4).double()
    draw = torch.Generator().manual_seed(0)
    first, x = torch.randn(2, 6, 4, generator=draw, dtype=torch.float64)
    loss(3 * first, LABELS)
    frozen = copy.deepcopy(loss)
    _, gradients = value_and_gradients(lambda x: loss(x, LABELS), x)
    # the statistics of this very batch, held fast
    frozen.load_state_dict(loss.state_dict())
    frozen.eval().momentum = {"sec": 0.0, "mdr": 1.0}[name]
    _, expected = value_and_gradients(lambda x: frozen(x, LABELS), x)
    torch.testing.assert_close(gradients[0], expected[0])


@pytest.mark.parametrize("make", [L2, SphericalEmbeddingConstraint, MultiLevelDistance])
def test_wrong_input_is_refused(make):
    """The rows that hold a NaN are named; a shape that does not fit is no number."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TypeError, match="labels must be integers"):
        make()(x, LABELS.float())
    with pytest.raises(ValueError, match="one label per row of vectors"):
        make()(x, LABELS[:2])
    x[3] = math.nan
    with pytest.raises(ValueError, match="vectors: row 3 of 6 not finite"):
        make()(x, LABELS)


def test_switched_triplets():
    """(a, p, n) becomes (a, a, p); the others stay."""
    triplets = tuple(torch.arange(1000) + shift for shift in (0, 1000, 2000))
    for p_switch, low, high in ((0.0, 0, 0), (0.3, 250, 350), (1.0, 1000, 1000)):
        torch.manual_seed(0)
        a, p, n = Rho(lambda *_: triplets, p_switch)(torch.zeros(1, 1), torch.zeros(1))
        switched = a == p
        assert low <= switched.sum() <= high
        assert a.equal(triplets[0])
        assert n[switched].equal(triplets[1][switched])
        assert p[~switched].equal(triplets[1][~switched])
        assert n[~switched].equal(triplets[2][~switched])
    with pytest.raises(ValueError, match="gives pairs"):
        Rho(lambda *_: triplets + triplets[:1])(torch.zeros(1, 1), torch.zeros(1))


def test_what_rho_needs():
    found, _ = compose.compose_all(["loss=contrastive", "regularizer=rho", "memory=xbm"])
    told = [problem.what for problem in check.rules(found)]
    assert "Add miner=distance_weighted" in told[0]
    assert "does not go with memory=xbm" in told[1]
    found, _ = compose.compose_all(["loss=margin", "regularizer=rho"])
    assert not check.rules(found)
    assert isinstance(build.miner(found.config), Rho)
    assert build.regularizer(found.config) is None


def test_its_parameters_are_in_the_optimizer():
    found, _ = compose.compose_all(["loss=circle", "regularizer=mdr"])
    found.config.data.num_train_classes = 4
    encoder, loss = build.encoder(found.config), build.loss(found.config)
    regularizer = build.regularizer(found.config)
    groups = build.optimizer(found.config, encoder, loss, regularizer).param_groups
    held = [p for group in groups for p in group["params"]]
    assert sum(p is regularizer.levels for p in held) == 1


@pytest.mark.parametrize("group", ["memory", "regularizer"])
def test_files_agree_with_schemas_and_constructors(group):
    for name in compose.options_of(group):
        yaml = OmegaConf.load(compose.config_dir() / group / f"{name}.yaml")
        node = ConfigStore.instance().repo["schema"][group][f"{name}.yaml"].node
        fields = {field.name for field in dataclasses.fields(OmegaConf.get_type(node))}
        assert set(yaml) - {"defaults"} == fields
        if yaml._target_ is not None:
            parameters = set(inspect.signature(get_object(yaml._target_)).parameters) - {"miner"}
            assert parameters == fields - {"_target_", "lr_scale"}
