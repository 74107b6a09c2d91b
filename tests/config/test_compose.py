"""Every file of the configuration composes, resolves and is within its own ranges."""

import pytest
from omegaconf import OmegaConf
from torch import nn

from dml import build
from dml.config import check, compose
from dml.data.index import SPLITS


def files(group: str) -> list[str]:
    return compose.options_of(group)


def options() -> list[str]:
    """`group=file` for each file there is, with what it needs to be complete."""
    needs = {
        "backbone=timm": ["backbone.name=test_vit"],
        "data=folder": ["data.root=somewhere"],
        "data=csv": ["data.root=somewhere", "data.labels=labels.csv"],
    }
    # post is dml-eval's own; launcher and search are of configs/sweep.yaml; losses and experiments, which are
    # many, have their own tests
    others = ("post", "experiment", "loss", *compose.AROUND)
    groups = [group for group in compose.groups() if group not in others]
    words = [f"{group}={name}" for group in groups for name in files(group)]
    return [" ".join([word, *needs.get(word, [])]) for word in words]


def assert_legal(words: list[str]) -> compose.Composed:
    """Composes, is within the ranges of every group, and resolves to the last value."""
    composed, problems = compose.compose_all(words)
    assert not problems
    composed.config.data.num_train_classes = 100
    assert not [p for group in check.GROUPS for p in check.node_problems(composed.config, group)]
    OmegaConf.to_container(composed.config, resolve=True, throw_on_missing=True)
    return composed


@pytest.mark.parametrize("words", options())
def test_every_file_composes_and_is_within_its_ranges(words):
    assert_legal(words.split())


# With a data set that brings groups of its own, and is not the default; every data set meets the default loss
# above.  All pairs would take five minutes and say no more.
@pytest.mark.parametrize("loss", files("loss"))
def test_every_loss_composes_and_brings_its_groups(loss):
    """Sampler and miner are the loss's, whatever the data set brings."""
    composed = assert_legal([f"loss={loss}", "data=inshop"])
    assert {"sampler", "miner", "backbone", "trainer"} <= {c.group for c in composed.choices}
    composed.config.data.root = "x"
    assert not check.rules(composed)
    assert isinstance(build.loss(composed.config), nn.Module)  # also those built of others


@pytest.mark.parametrize("step", files("post"))
def test_every_step_after_the_encoder_composes(step):
    composed, problems = compose.compose_all([f"post=[{step}]"], "eval")
    assert not problems
    assert not check.node_problems(composed.config.post, step)
    OmegaConf.to_container(composed.config.post, resolve=True, throw_on_missing=True)


def test_training_takes_no_step_after_the_encoder():
    """Else the words would be Hydra's own, about a defaults list."""
    _, problems = compose.compose_all(["post=flip"])
    assert [problem.what for problem in problems] == [
        "post is an option of dml-eval; training takes no such steps."
    ]


def test_every_group_has_a_schema_and_is_checked():
    composed, _ = compose.compose_all([])
    groups = {key for key in composed.config if OmegaConf.is_dict(composed.config[key])}
    assert groups == set(check.GROUPS)


def test_a_sweep_is_the_product_of_its_lists():
    jobs, varied = compose.expand(["loss=circle,triplet", "seed=range(0,2)", "head.dim=64"])
    assert jobs == [
        ["loss=circle", "seed=0", "head.dim=64"],
        ["loss=circle", "seed=1", "head.dim=64"],
        ["loss=triplet", "seed=0", "head.dim=64"],
        ["loss=triplet", "seed=1", "head.dim=64"],
    ]
    assert varied == ["loss", "seed"]


def test_splits_have_their_names():
    """The record and the index speak of the same splits."""
    assert SPLITS == ("train", "val", "test")
