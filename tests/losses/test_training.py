"""Every loss trains: 20 steps on the glyphs, from its command line to its record."""

import csv

import pytest

from dml import cli, run
from dml.config import compose

# These divide by the pairs or triplets that still have a value, or take only such: what is left stays as
# hard as before while it gets less. Averaged over all pairs they fall.
OVER_ALL = {
    "contrastive": ["loss.average=all"],
    "quadruplet": ["loss.average=all"],
    "triplet": ["loss.average=all", "miner=none"],
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", compose.options_of("loss"))
def test_twenty_steps_help(loss, cache, tmp_path):
    """The loss falls, and unseen classes are found better than by the untrained encoder."""
    words = [
        f"loss={loss}",
        f"data.root={cache}",
        f"run_dir={tmp_path / 'run'}",
        "trainer.max_steps=20",
        "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu",
        "loader.num_workers=0",
        *OVER_ALL.get(loss, []),
    ]
    metrics = run.train(*cli.checked(words))["metrics"]
    assert metrics["test"]["recall@1"] > metrics["untrained"]["recall@1"]
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        curve = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(curve) == 20
    assert sum(curve[-5:]) < sum(curve[:5])
