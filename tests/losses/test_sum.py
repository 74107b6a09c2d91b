"""Several losses at once: composed from their files, checked by their schemas, added with weights."""

import pytest
import torch
from omegaconf import OmegaConf

from dml import build, cli
from dml.config import check, compose
from dml.errors import ConfigurationError
from dml.losses import ArcFace, SmoothAP, Triplet
from dml.losses.sum import Sum

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def composed(*words):
    found, problems = compose.compose_all(["loss=sum", *words])
    assert not problems
    found.config.data.num_train_classes = 6
    return found


def test_the_default_is_its_parts_added():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    triplet, arcface = Triplet(), ArcFace(6, 4).double()
    loss = Sum([triplet, arcface], [2.0, 0.5], [True, False], [True, False])
    expected = 2 * triplet(x, LABELS) + 0.5 * arcface(x, LABELS)
    torch.testing.assert_close(loss(x, LABELS), expected)


def test_miner_and_memory_reach_the_parts_that_take_them():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    one = torch.tensor([0])
    chosen = (one, one + 1, one + 2)
    triplet, smooth_ap = Triplet(), SmoothAP()
    loss = Sum([triplet, smooth_ap], [2, 1], [True, False], [True, False])
    torch.testing.assert_close(
        loss(x, LABELS, chosen), 2 * triplet(x, LABELS, chosen) + smooth_ap(x, LABELS)
    )
    columns = {"reference": x, "reference_labels": LABELS, "self_slots": torch.arange(6)}
    torch.testing.assert_close(loss(x, LABELS, **columns), 2 * triplet(x, LABELS))


def test_values_are_those_of_the_files():
    config = composed().config
    for part, name in (("first", "triplet"), ("second", "arcface")):
        file = OmegaConf.load(compose.config_dir() / "loss" / f"{name}.yaml")
        for key in config.loss[part]:
            ours = OmegaConf.to_container(config.loss[part], resolve=False)[key]
            assert ours == OmegaConf.to_container(file, resolve=False)[key], key


def test_other_parts_and_their_options():
    found = composed(
        "loss.first=contrastive", "loss.third=circle", "loss.weights=[1,2,3]", "loss.third.scale=32"
    )
    assert not check.node_problems(found.config, "loss") + check.rules(found)
    loss = build.loss(found.config)
    assert [type(part).__name__ for part in loss.losses] == ["Contrastive", "ArcFace", "Circle"]
    assert loss.losses[2].scale == 32
    assert loss.takes_miner == (True, False, True)
    choices = {choice.group: (choice.option, choice.chosen_by) for choice in found.choices}
    assert choices["loss.third"] == ("circle", "command line")
    assert choices["loss.second"] == ("arcface", "loss=sum")


def test_every_part_learns_at_its_own_rate():
    found = composed("loss.first=proxy_nca", "miner=none", "loss.first.lr_scale=7")
    encoder, loss = build.encoder(found.config), build.loss(found.config)
    groups = build.optimizer(found.config, encoder, loss).param_groups
    rate = found.config.optimizer.head_lr
    rates = {group["name"]: group["lr"] for group in groups if group["name"].startswith("loss")}
    assert rates == {"loss.first": pytest.approx(7 * rate), "loss.second": pytest.approx(5 * rate)}


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["loss.second.margin=9"], "loss.second.margin=9", "must lie in [0, 1.5708]"),
        (["loss.weights=[1]"], "loss.weights=[1.0]", "must be 2 numbers above 0"),
        (["loss.second=snr_contrastive"], "loss=sum", "compare embeddings in different ways"),
        (["loss.first=smooth_ap"], "miner=semihard", "takes no miner"),
        (["sampler=random"], "sampler=random", "loss.first=triplet compares triplets"),
    ],
)
def test_mistakes_within_a_part(words, where, what):
    """The full key, as the user has to type it."""
    found = composed(*words)
    problems = check.node_problems(found.config, "loss") + check.rules(found)
    assert [p.where for p in problems] == [where]
    assert what in problems[0].what


def test_unknown_parts_and_options():
    _, problems = compose.compose_all(["loss=sum", "loss.first=tripet", "loss.second.margn=1"])
    assert [p.where for p in problems] == ["loss.first=tripet", "loss.second.margn=1"]
    assert "Did you mean loss.first=triplet?" in problems[0].what
    _, problems = compose.compose_all(["loss=circle", "loss.first=triplet"])
    assert "loss has no option 'first'" in problems[0].what


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["loss.first=circle", "loss.third=contrastive", "loss.third.negative_margin=0.5"],
    ],
    ids=["default", "other_parts"],
)
def test_the_printed_configuration_is_the_one_that_runs(words, monkeypatch, capsys):
    """`--cfg job` is Hydra's own composition; the parts are ours and must be in it all the same."""
    typed = ["loss=sum", *words]
    monkeypatch.setattr("sys.argv", ["train.py", "--cfg", "job", *typed])
    assert cli.train_command(["--cfg", "job", *typed]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    found, _ = compose.compose_all(typed)
    assert printed.loss == OmegaConf.create(OmegaConf.to_yaml(found.config.loss))


def test_a_part_that_is_no_loss_is_refused_before_printing():
    with pytest.raises(ConfigurationError, match=r"Did you mean loss.first=circle"):
        cli.train_command(["--cfg", "job", "loss=sum", "loss.first=circel"])
