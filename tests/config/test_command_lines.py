"""What a wrong command line is told: each line names what was typed and the mend, all at once.

The texts are part of the interface and are compared whole where they are short.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from dml import cli
from dml.config import compose
from dml.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


def problems(*words: str) -> dict[str, str]:
    """What is wrong with a command line: typed -> told."""
    with pytest.raises(ConfigurationError) as caught:
        cli.checked(list(words))
    return {problem.where: problem.what for problem in caught.value.problems}


CASES = {
    # typed, and all that is told
    "loss=circel": ("loss=circel", "loss has no 'circel'. Did you mean loss=circle?\nOptions: "),
    "los=circle": ("los=circle", "there is no option 'los'. Did you mean loss?\nOptions: "),
    "loss.margin=9": (
        "loss.margin=9",
        "must lie in (0, 1). The paper uses 0.25 (faces) and 0.4 (retrieval).",
    ),
    "loss.margin=abc": (
        "loss.margin=abc",
        "Value 'abc' of type 'str' could not be converted to Float.",
    ),
    "loss.margn=1": (
        "loss.margn=1",
        "loss has no option 'margn'. Did you mean loss.margin?\nOptions: ",
    ),
    "+loss.margn=1": (
        "+loss.margn=1",
        "loss has no option 'margn'. Did you mean loss.margin?\nOptions: ",
    ),
    "++loss.margn=1": ("++loss.margn=1", "loss has no option 'margn'. Did you mean loss.margin?"),
    "loss.margin.x=1": ("loss.margin.x=1", "loss.margin is a value and has no options of its own."),
    "+new.key=1": ("+new.key=1", "there is no option 'new'."),
    "loss": ("loss", "cannot be read (missing EQUAL at '<EOF>').\nOptions are written key=value; "),
    "--foo": ("--foo", "is no flag. Options are written key=value; see --help."),
    "~loss": ("~loss", "a group cannot be removed."),
    "~seed": ("~seed", "an option cannot be removed. Give it another value."),
    "loss=circle,triplet": (
        "loss=circle,triplet",
        "names several values. Add -m to run each of them.",
    ),
    "head.dim=0": ("head.dim=0", "must be at least 1."),
    "head.pooling=mean": (
        "head.pooling=mean",
        "must be one of avg, max, avg_max, gem, native.",
    ),
    "seed=-1": ("seed=-1", "must lie in [0, 4294967295]."),
    "optimizer.betas=[0.9]": ("optimizer.betas=[0.9]", "must be two numbers in [0, 1)."),
    "optimizer.lr=0": ("optimizer.lr=0", "must be above 0."),
    "optimizer.lr=nan": ("optimizer.lr=nan", "must be above 0."),
    "optimizer.sam_rho=0": ("optimizer.sam_rho=0", "must be above 0. The paper uses 0.05."),
    "optimizer.layer_decay=1.5": ("optimizer.layer_decay=1.5", "must lie in (0, 1]."),
    "trainer.batch_chunks=0": ("trainer.batch_chunks=0", "must be at least 1."),
    "trainer.batch_chunks=1000": (
        "trainer.batch_chunks=1000",
        "cuts batches of 64 images into more parts than images.",
    ),
    "trainer.precision=fp16": (
        "trainer.precision=fp16",
        "must be one of 32-true, 16-mixed, bf16-mixed, 64-true.",
    ),
    "trainer.gradient_clip_algorithm=max": (
        "trainer.gradient_clip_algorithm=max",
        "must be one of norm, value.",
    ),
    "augment.scale=[1,0.5]": (
        "augment.scale=[1.0, 0.5]",
        "must be [low, high] with 0 < low <= high <= 1.",
    ),
    "backbone.mean=[0.5,0.5]": ("backbone.mean=[0.5, 0.5]", "takes one number or three."),
    "backbone.std=[0]": ("backbone.std=[0.0]", "must be above 0."),
    "backbone.resize=32": (
        "backbone.resize=32",
        "is below backbone.image_size=64, which is cropped from it.",
    ),
    "optimizer={lr:1}": ("optimizer={lr:1}", "optimizer has no {'lr': 1}."),
    "loader={num_workers:1}": (
        "loader={num_workers:1}",
        "loader holds several options. Set them one by one: loader.num_workers=...",
    ),
    "selection.metric=recall@3": ("selection.metric=recall@3", "is not among evaluation.metrics ("),
    "evaluation.metrics=[recall@1,recal@2]": (
        "evaluation.metrics",
        "unknown metric 'recal@2'; the nearest are recall@k",
    ),
    "ckpt_path=last": (
        "ckpt_path=last",
        "of which run? Add run_dir=DIR, the directory of that run.",
    ),
    "ckpt_path=nowhere.ckpt": ("ckpt_path=nowhere.ckpt", "there is no file nowhere.ckpt."),
    "experiment=none": ("experiment=none", "experiment has no 'none'."),
    "backbone=timm": ("backbone.name", "has no value. Add backbone.name=..."),
    "sampler=random": (
        "sampler=random",
        "loss=circle compares pairs within a batch, and sampler=random promises no two images of a class.\n"
        "Drop sampler=random (loss=circle brings its own sampler), or choose a loss with proxies "
        "(loss=proxy_nca).",
    ),
}


@pytest.mark.parametrize("word", CASES)
def test_one_mistake(word, cache):
    where, what = CASES[word]
    found = problems(word, f"data.root={cache}")
    assert list(found) == [where]
    assert found[where].startswith(what) or what in found[where].splitlines()[0]


def test_a_miner_that_a_proxy_loss_cannot_use(cache):
    found = problems("loss=proxy_nca", "miner=semihard", f"data.root={cache}")
    assert found == {
        "miner=semihard": "miner=semihard finds triplets, and loss=proxy_nca takes no miner. "
        "Drop it, or add miner=none."
    }


def test_all_mistakes_are_told_at_once(tmp_path):
    """A user mends a command line once, not once per mistake."""
    found = problems(
        "loss.margin=9",
        "sampler=random",
        "data=folder",
        f"data.root={tmp_path / 'none'}",
        "los=x",
        "-q",
    )
    assert set(found) >= {"loss.margin=9", "sampler=random", "los=x", "-q"}
    assert any("data.root" in where for where in found)


def test_keys_of_a_free_dictionary_need_no_plus(cache):
    composed, _ = cli.checked(["backbone.kwargs.drop_rate=0.1", f"data.root={cache}"])
    assert composed.config.backbone.kwargs.drop_rate == 0.1
    assert composed.config.backbone.kwargs.stem_width == 16


def test_values_reach_the_configuration(cache):
    composed, index = cli.checked(
        ["loss=triplet", "loss.margin=0.3", "optimizer.lr=3e-4", "seed=5", f"data.root={cache}"]
    )
    assert composed.config.loss.margin == 0.3
    assert composed.config.optimizer.lr == 3e-4
    assert composed.config.seed == 5
    assert composed.config.data.num_train_classes == len(index.classes_of("train")) == 100


def test_who_chose_what(cache):
    """The loss brings sampler and miner, the data set the rest; the command line wins over both."""
    composed, _ = cli.checked(["loss=triplet", "augment=none", f"data.root={cache}"])
    by = {choice.group: (choice.option, choice.chosen_by) for choice in composed.choices}
    assert by["loss"] == ("triplet", "command line")
    assert by["sampler"] == ("pk", "loss=triplet")
    assert by["miner"] == ("semihard", "loss=triplet")
    assert by["augment"] == ("none", "command line")
    assert by["backbone"] == ("glyphs_cnn", "data=glyphs")
    assert by["head"] == ("linear", "default")
    assert by["trainer"] == ("glyphs", "data=glyphs")


@pytest.mark.parametrize(
    "order", [["loss=proxy_nca", "sampler=pk"], ["sampler=pk", "loss=proxy_nca"]]
)
def test_the_command_line_wins_over_the_loss_in_any_order(order, cache):
    composed, _ = cli.checked([*order, f"data.root={cache}"])
    assert composed.config.sampler.images_per_class == 4


def test_a_finished_run_is_not_overwritten(tmp_path, cache):
    (tmp_path / "record.json").write_text("{}")
    found = problems(f"run_dir={tmp_path}", f"data.root={cache}")
    assert "holds a finished run" in found[f"run_dir={tmp_path}"]


def test_an_unfinished_run_asks_whether_to_resume(tmp_path, cache):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    found = problems(f"run_dir={tmp_path}", f"data.root={cache}")
    assert "Add ckpt_path=last to resume it" in found[f"run_dir={tmp_path}"]


def test_resuming_with_other_options_is_refused(tmp_path, cache):
    """Half a run at one margin and half at another would be neither."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    words = [f"run_dir={tmp_path}", "ckpt_path=last", f"data.root={cache}"]
    composed, problems_found = compose.compose_all(words)
    assert not problems_found
    from omegaconf import OmegaConf

    composed.config.data.num_train_classes = 100
    OmegaConf.save(composed.config, tmp_path / "config.yaml", resolve=True)
    cli.checked([*words, "loader.num_workers=0"])
    found = problems(*words, "loss.margin=0.3")
    assert found == {
        "loss.margin=0.3": f"the run in {tmp_path} was started with 0.4. Add loss.margin=0.4, "
        "or start a new run."
    }


def test_best_weights_need_validation_classes(birds):
    words = ["data=csv", f"data.root={birds}", "data.labels=labels.csv", "backbone=mobilenetv2_035"]
    found = problems(*words, "data.val_fraction=0", "selection.rule=best", "selection.patience=3")
    assert set(found) == {"selection.rule=best", "selection.patience=3"}


def test_wandb_without_a_login_is_said_before_training(monkeypatch, tmp_path, cache):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    found = problems("logger=wandb", f"data.root={cache}")
    assert "logger.mode=offline" in found["logger=wandb"]
    cli.checked(["logger=wandb", "logger.mode=offline", f"data.root={cache}"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    cli.checked(["logger=wandb", f"data.root={cache}"])


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_exits_with_2_and_leaves_nothing_behind(tmp_path):
    done = run("loss=circel", "loss.margin=1.5", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        "2 problems in the configuration\n"
        "  loss=circel      loss has no 'circel'. Did you mean loss=circle?\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_the_choices_and_trains_nothing(tmp_path, cache):
    done = run("loss=triplet", f"data.root={cache}", "dry_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "semihard" in done.stdout
    assert not list(tmp_path.iterdir())


def test_help_lists_groups_and_options(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "loss: " in done.stdout
    assert "multi_similarity" in done.stdout
    assert not list(tmp_path.iterdir())
