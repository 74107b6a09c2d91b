"""Configuration knows every metric's name, and which of them can choose a checkpoint, without torch."""

import pytest

from dml import cli
from dml.errors import ConfigurationError
from dml.evaluation.names import FAMILIES


def words(*metrics):
    return "evaluation.metrics=[" + ",".join(f'"{metric}"' for metric in metrics) + "]"


def test_every_name_can_be_configured():
    names = [
        key.replace("@k", "@7").replace("=x", "=1e-3").replace("@x", "@0.9")
        for entries in FAMILIES.values()
        for key in entries
    ]
    composed, _ = cli.checked([words("recall@1", *names), "selection.metric=recall@1"])
    assert composed.config.evaluation.metrics == ["recall@1", *names]


@pytest.mark.parametrize("metric", ["fnmr@fmr=1e-3", "uniformity"])
def test_less_is_no_aim(metric):
    """Checkpoints are chosen by the largest value: this one would choose the worst."""
    with pytest.raises(ConfigurationError) as error:
        cli.checked([words("recall@1", metric), f"selection.metric='{metric}'"])
    problem = next(p for p in error.value.problems if p.where.startswith("selection.metric"))
    assert "cannot choose a checkpoint" in problem.what


def test_an_unknown_name_is_shown_beside_the_nearest():
    with pytest.raises(ConfigurationError) as error:
        cli.checked([words("recall@1", "uniformty"), "selection.metric=recall@1"])
    assert "unknown metric 'uniformty'; the nearest are uniformity" in str(error.value)
