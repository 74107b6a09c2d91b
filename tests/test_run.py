"""A training run from its command line to its record: what is written, repeated, resumed and hidden.

On scikit-learn's digits, which train in seconds. Real photographs are in test_birds.py.
"""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dml import build, cli, eval_command, measure, record, run
from dml.callbacks import Interrupted, StopOnSignal
from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, RunError

ROOT = Path(__file__).resolve().parents[1]


def words(cache: Path, run_dir: Path, *more: str) -> list[str]:
    """A run of a few seconds: 2 epochs of 6 batches, unless `more` says otherwise."""
    proxies = any(word == "loss=proxy_nca" for word in more)
    return [
        "data=digits",
        f"data.root={cache}",
        f"run_dir={run_dir}",
        "trainer.max_epochs=2",
        "loader.num_workers=0",
        "loader.eval_batch_size=500",
        "backbone.kwargs.channels=[8,8,8,8]",
        "backbone.image_size=32",
        "backbone.resize=32",
        "trainer.accelerator=cpu",
        "sampler.batch_size=140" if proxies else "sampler.batches_per_epoch=6",
        *more,
    ]


def train(cache: Path, run_dir: Path, *more: str) -> dict:
    return run.train(*cli.checked(words(cache, run_dir, *more)))


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def assert_equal_weights(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


# Drop-out draws random numbers at every step: a resumed run must go on drawing where it stopped.
WHOLE = ("loss=proxy_nca", "miner=none", "backbone.kwargs.drop_rate=0.1")


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory) -> tuple[Path, dict]:
    """One run that several tests look at."""
    cli.set_up_log()
    directory = tmp_path_factory.mktemp("finished") / "run"
    return directory, train(cache, directory, *WHOLE)


def test_a_run_leaves_what_it_says(finished):
    directory, _ = finished
    assert sorted(path.name for path in directory.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "log.txt",
        "metrics.csv",
        "record.json",
    ]
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]


def test_the_record_is_whole(finished):
    directory, returned = finished
    found = record.read(directory)
    assert found == json.loads(json.dumps(returned))
    assert set(found["metrics"]) == {"frozen", "untrained", "val", "test"}
    assert set(found["metrics"]["test"]) == {
        "recall@1",
        "recall@2",
        "recall@4",
        "recall@8",
        "map@r",
        "r_precision",
    }
    assert found["data"]["splits"]["test"] == {"images": 533, "classes": 3}
    assert found["checkpoint"]["rule"] == "best val/recall@1"
    assert found["config"]["loss"]["num_classes"] == 5
    assert {"group": "sampler", "option": "random", "chosen_by": "loss=proxy_nca"} in found[
        "choices"
    ]


def test_curves_and_log_are_kept(finished):
    directory, _ = finished
    with (directory / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row["train/loss"] for row in rows)
    assert sum(bool(row["val/recall@1"]) for row in rows) == 2
    text = (directory / "log.txt").read_text()
    assert "epoch 2/2" in text
    assert "chosen by" in text
    assert "untrained" in text


def test_validation_metrics_of_the_record_are_those_of_the_chosen_weights(finished):
    """The best epoch's figure in the curve and the one recomputed from its checkpoint agree."""
    directory, found = finished
    with (directory / "metrics.csv").open(newline="") as file:
        curve = [float(row["val/recall@1"]) for row in csv.DictReader(file) if row["val/recall@1"]]
    assert found["metrics"]["val"]["recall@1"] == pytest.approx(max(curve), abs=1e-6)


def test_same_command_same_weights(cache, tmp_path):
    """Bit for bit on a CPU: seeds, order of batches, augmentation, mining.

    With proxies, and batches of single images, the resumed runs below say it too.
    """
    changed = "loss=triplet", "miner=distance_weighted", "trainer.max_epochs=1"
    first = train(cache, tmp_path / "a", *changed)
    second = train(cache, tmp_path / "b", *changed, "loader.num_workers=2")
    assert_equal_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert first["metrics"] == second["metrics"]
    train(cache, tmp_path / "c", *changed, "seed=1")
    with pytest.raises(AssertionError):
        assert_equal_weights(weights(tmp_path / "a"), weights(tmp_path / "c"))


class StopAt(StopOnSignal):
    """Stands in for Ctrl-C at a given step."""

    step = 0

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            self.received = signal.SIGINT
        super().on_train_batch_end(trainer, *args)


@pytest.mark.parametrize(("step", "workers"), [(4, 0), (6, 2), (9, 2), (12, 0)])
def test_a_stopped_run_resumes_to_the_same_result(
    step, workers, finished, cache, tmp_path, monkeypatch
):
    """Stopped within the first epoch, at its last batch, within the second, and at the very end.

    With workers too, and held against a run that had none.
    """
    changed = (*WHOLE, f"loader.num_workers={workers}")
    directory, whole = finished
    monkeypatch.setattr(StopAt, "step", step)
    with monkeypatch.context() as patch:
        patch.setattr(run, "StopOnSignal", StopAt)
        with pytest.raises(Interrupted):
            train(cache, tmp_path / "part", *changed)
    assert not (tmp_path / "part" / "record.json").exists()
    resumed = train(cache, tmp_path / "part", *changed, "ckpt_path=last")
    assert_equal_weights(weights(directory), weights(tmp_path / "part"))
    assert_equal_weights(weights(directory, "best"), weights(tmp_path / "part", "best"))
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["checkpoint"] == whole["checkpoint"]
    with (tmp_path / "part" / "metrics.csv").open(newline="") as file:
        assert sum(bool(row["val/recall@1"]) for row in csv.DictReader(file)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_deals_other_batches(workers, cache, tmp_path, monkeypatch):
    """Lightning must reach our sampler's epoch; else every epoch would repeat the first."""
    seen = []
    step = run.DmlModule.training_step

    def watched(self, batch, batch_idx):
        seen.append((self.current_epoch, batch_idx, batch.ids.tolist(), batch.images.sum().item()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(run.DmlModule, "training_step", watched)
    composed, index = cli.checked(words(cache, tmp_path / "run", f"loader.num_workers={workers}"))
    run.train(composed, index)
    sampler = build.sampler(composed.config, index.part("train"))
    positions = index.part("train").ids
    expected = [positions[batch].tolist() for epoch in (0, 1) for batch in sampler.batches(epoch)]
    assert [ids for _, _, ids, _ in seen] == expected
    assert expected[:6] != expected[6:]


def test_training_cannot_see_the_test_classes(cache, tmp_path, monkeypatch):
    """Test classes choose nothing: they are not even listed for loading before training is over."""
    opened = []
    part, fit = ImageIndex.part, run.pl.Trainer.fit

    def watched_part(self, split):
        opened.append(split)
        return part(self, split)

    def watched_fit(*args, **kwargs):
        opened.append("fit begins")
        fit(*args, **kwargs)
        opened.append("fit ends")

    real_loader = run.eval_loader
    loaded = []

    def watched_loader(images, *args, **kwargs):
        loaded.append((images.num_classes, "fit ends" in opened))
        return real_loader(images, *args, **kwargs)

    monkeypatch.setattr(ImageIndex, "part", watched_part)
    monkeypatch.setattr(run.pl.Trainer, "fit", watched_fit)
    monkeypatch.setattr(run, "eval_loader", watched_loader)
    monkeypatch.setattr(measure, "eval_loader", watched_loader)
    train(cache, tmp_path / "run", "trainer.max_epochs=1")
    within = opened[opened.index("fit begins") : opened.index("fit ends")]
    assert "test" not in within
    # digits: 2 validation classes, 3 test classes
    assert [after for classes, after in loaded if classes == 3] == [True]


def test_evaluating_a_run_again_gives_its_own_numbers(finished, cache, caplog):
    directory, found = finished
    assert eval_command.run([f"run={directory}"]) == 0
    written = json.loads((directory / "evaluation_digits_test.json").read_text())
    assert written["metrics"] == found["metrics"]["test"]


def test_evaluating_on_other_data(finished, tmp_path):
    directory, _ = finished
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    eval_command.run(
        [f"run={directory}", "data=folder", f"data.root={tmp_path}", "loader.num_workers=0"]
    )
    written = json.loads((directory / "evaluation_folder_test.json").read_text())
    assert written["images"] == 16
    eval_command.run([f"run={directory}", "data=folder", f"data.root={tmp_path}", "split=all"])
    written = json.loads((directory / "evaluation_folder_all.json").read_text())
    assert written["images"] == 32
    assert 0 <= written["metrics"]["map@r"] <= 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which run?"),
        (["run=nowhere"], "no finished run"),
        (["run=.", "loss=circle"], "no option of dml-eval"),
        (["run=.", "split=some"], "must be one of train, val, test, all"),
    ],
)
def test_wrong_evaluations_are_refused(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=told):
        eval_command.run(words or ["split=test"])


def made_folder(folder: Path, classes: int = 12, images: int = 6) -> Path:
    """A folder of images whose class is their colour."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label:02}").mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for number in range(images):
            noise = rng.normal(0, 20, (36, 36, 3))
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label:02}" / f"{number}.png")
    return folder


OWN = (
    "data=folder",
    "backbone=timm",
    "backbone.name=test_resnet",
    "backbone.pretrained=false",
    "backbone.image_size=32",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "loader.num_workers=0",
)


def own(folder: Path, run_dir: Path, *more: str) -> dict:
    return run.train(*cli.checked([*OWN, f"data.root={folder}", f"run_dir={run_dir}", *more]))


def test_a_folder_of_ones_own_images(tmp_path):
    found = own(made_folder(tmp_path / "images"), tmp_path / "run")
    assert found["metrics"]["test"]["recall@1"] > 0.5
    assert found["data"]["splits"]["val"]["classes"] >= 1


def test_an_unreadable_image_stops_the_run_and_is_named(tmp_path):
    folder = made_folder(tmp_path / "images")
    for path in folder.glob("*/3.png"):
        path.write_bytes(b"no image")
    with pytest.raises(RunError, match=r"3\.png.*\n.*on_bad_image=skip"):
        own(folder, tmp_path / "run")


def test_skipped_images_are_counted_in_the_record(tmp_path):
    folder = made_folder(tmp_path / "images")
    for path in folder.glob("*/3.png"):
        path.write_bytes(b"no image")
    found = own(folder, tmp_path / "run", "data.on_bad_image=skip", "trainer.max_epochs=3")
    assert (
        len(found["data"]["unreadable"]) >= 6
    )  # the test classes' six, and those training has met
    assert found["metrics"]["test"]["recall@1"] > 0


def test_without_validation_classes_the_last_epoch_counts(tmp_path):
    found = own(made_folder(tmp_path / "images"), tmp_path / "run", "data.val_fraction=0")
    assert found["checkpoint"]["rule"] == "last epoch"
    assert found["metrics"]["val"] is None


def test_a_frozen_trunk_does_not_move(tmp_path):
    folder = made_folder(tmp_path / "images")
    own(folder, tmp_path / "frozen", "backbone.freeze_epochs=1", "optimizer.lr=0.1")
    own(folder, tmp_path / "still", "backbone.freeze_epochs=1", "optimizer.lr=0.001")
    trunk = {k: v for k, v in weights(tmp_path / "frozen").items() if k.startswith("encoder.trunk")}
    assert_equal_weights(
        trunk,
        {k: v for k, v in weights(tmp_path / "still").items() if k.startswith("encoder.trunk")},
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    folder = made_folder(tmp_path / "images")
    with pytest.raises(RunError, match="step"):
        own(
            folder,
            tmp_path / "run",
            "optimizer.lr=1e30",
            "optimizer.head_lr=1e30",
            "trainer.max_epochs=9",
        )


def test_max_steps_ends_within_an_epoch(cache, tmp_path):
    found = train(cache, tmp_path / "run", "trainer.max_steps=3")
    assert found["checkpoint"]["step"] == 3


def test_the_run_directory_may_be_relative_or_left_out(tmp_path, monkeypatch):
    """The default is relative to where the command was typed, with the time, data, loss and seed."""
    folder = made_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    run.train(*cli.checked([*OWN, "data.root=images"]))
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.endswith("_folder_circle_seed0")
    assert record.read(directory)["checkpoint"]["file"] == "checkpoints/best.ckpt"
    run.train(*cli.checked([*OWN, f"data.root={folder}", "run_dir=here"]))
    assert record.read(tmp_path / "here")


def test_early_stopping(tmp_path):
    found = own(
        made_folder(tmp_path / "images"),
        tmp_path / "run",
        "selection.patience=1",
        "trainer.max_epochs=50",
    )
    assert found["checkpoint"]["step"] < 50 * 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_says_how_to_resume(number, cache, tmp_path):
    """The real thing, in a process of its own: the printed command goes on."""
    command = [sys.executable, str(ROOT / "train.py"), *words(cache, tmp_path / "run")]
    command += ["trainer.max_epochs=20"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.txt"
    deadline = time.monotonic() + 300  # a machine may be busy
    while not (log.exists() and "epoch 1/20" in log.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the first epoch never ended"
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == (130 if number == signal.SIGINT else 75), error
    assert "Resume with\n" in error
    resume = shlex.split(error.split("Resume with\n")[1].split("\n")[0])
    assert resume[-1] == "ckpt_path=last"
    if number == signal.SIGTERM:
        return  # the same command and checkpoint; once is enough to go on with
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *resume[2:]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert record.read(tmp_path / "run")["checkpoint"]["epoch"] >= 1
