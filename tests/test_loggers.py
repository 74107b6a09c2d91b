"""Weights & Biases and TensorBoard: what they were given is read back from the files that they keep."""

import io
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dml import cli, record, run
from dml.errors import ConfigurationError, RunError


def words(cache: Path, run_dir: Path, *more: str) -> list[str]:
    """A run of a second: 2 epochs of 3 batches."""
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
        "sampler.batches_per_epoch=3",
        *more,
    ]


def train(cache: Path, run_dir: Path, *more: str) -> dict:
    found = run.train(*cli.checked(words(cache, run_dir, *more)))
    assert found is not None
    return found


BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def logged(content: bytes) -> Iterator[bytes]:
    """The entries of a log in LevelDB's format, as W&B writes them after a head of seven bytes.

    Blocks of 32 KiB; in each, parts of a checksum, a length, a kind and as many bytes.
    """
    assert content[:4] == b":W&B"
    position, entry = 7, b""
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < 7:  # too small for a part: filled with zeros
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        entry += content[position + 7 : position + 7 + length]
        assert kind in (FULL, FIRST, MIDDLE, LAST)
        if kind in (FULL, LAST):
            yield entry
            entry = b""
        position += 7 + length


def offline_run(run_dir: Path) -> dict[str, list]:
    """Everything that an offline run of W&B wrote, by kind: what `wandb sync` would send."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list] = {}
    for path in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")):
        for data in logged(path.read_bytes()):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(data)
            kind = entry.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(entry, kind))
    return found


def ended_runs(run_dir: Path, number: int) -> dict[str, list]:
    """`offline_run` once so many runs have ended: W&B's own process writes that a little later."""
    deadline = time.monotonic() + 300  # a machine may be busy
    while len((found := offline_run(run_dir)).get("exit", [])) < number:
        assert time.monotonic() < deadline, "W&B did not write that the run has ended"
        time.sleep(0.1)
    return found


def items(entries) -> dict[str, object]:
    """W&B's key and JSON pairs; a nested key is joined by dots."""
    return {
        entry.key or ".".join(entry.nested_key): json.loads(entry.value_json) for entry in entries
    }


@pytest.fixture(scope="module")
def online(cache, tmp_path_factory):
    """One run with W&B offline, and what it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        folder = tmp_path_factory.mktemp("wandb") / "run"
        more = (
            "logger=wandb",
            "logger.mode=offline",
            "logger.group=some_sweep",
            "logger.gallery=2",
        )
        found = train(cache, folder, *more)
    return folder, found, ended_runs(folder, 1)


def test_wandb_has_configuration_and_group(online):
    folder, found, written = online
    (begun,) = written["run"]
    assert begun.display_name == folder.name
    assert begun.run_group == "some_sweep"
    assert begun.project == "dml"
    config = items(begun.config.update)
    for entry in written.get("config", []):
        config |= items(entry.update)
    assert config["loss"] == found["config"]["loss"]
    assert config["seed"] == 0


def test_wandb_has_curves_and_results(online):
    _, found, written = online
    history = [items(entry.item) for entry in written["history"]]
    assert sum("train/loss" in row for row in history) >= 2
    curve = [row["val/recall@1"] for row in history if "val/recall@1" in row]
    assert len(curve) == 2
    assert found["metrics"]["val"]["recall@1"] == pytest.approx(max(curve), abs=1e-6)
    summary: dict[str, object] = {}
    for entry in written["summary"]:
        summary |= items(entry.update)
    for which in ("test", "untrained", "frozen"):
        assert summary[f"{which}/map@r"] == found["metrics"][which]["map@r"]


def test_wandb_has_the_record_as_an_artifact(online):
    folder, _, written = online
    (artifact,) = written["artifact"]
    assert artifact.type == "record"
    assert [entry.path for entry in artifact.manifest.contents] == [record.FILE]
    assert artifact.manifest.contents[0].size == (folder / record.FILE).stat().st_size


def test_wandb_has_a_gallery(online):
    """A row of pictures for each query: itself and its eight nearest."""
    folder, _, written = online
    shown: dict[str, dict[str, Any]] = {"random": {}, "worst": {}}
    for row in written["history"]:
        for key, value in items(row.item).items():
            if key.startswith("gallery/"):
                name, _, part = key.removeprefix("gallery/").partition(".")
                shown[name][part] = value
    for pictures in shown.values():
        assert pictures["count"] == 2
        assert all("; nearest: " in caption for caption in pictures["captions"])
    files = list((folder / "wandb").glob("offline-run-*/files/media/images/gallery/*.png"))
    assert len(files) == 4
    for path in files:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            assert picture.width == 9 * picture.height


def test_no_run_of_wandb_stays_open(online):
    """The next run of this process would write its curves into it."""
    import os

    import wandb

    assert wandb.run is None
    assert os.environ.get("WANDB_MODE") is None


def test_a_failed_run_is_closed_and_a_resumed_one_is_the_same(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    more = ("logger=wandb", "logger.mode=offline", "logger.gallery=0")
    evaluation = run.final_evaluation

    def failing(*args, **kwargs):
        raise RunError("the disk is full")

    monkeypatch.setattr(run, "final_evaluation", failing)
    with pytest.raises(RunError):
        train(cache, tmp_path / "run", *more)
    import wandb

    assert wandb.run is None
    first = ended_runs(tmp_path / "run", 1)
    assert first["exit"][-1].exit_code == 1
    monkeypatch.setattr(run, "final_evaluation", evaluation)
    train(cache, tmp_path / "run", *more, "ckpt_path=last")
    both = ended_runs(tmp_path / "run", 2)
    assert len(both["run"]) == 2
    assert len({begun.run_id for begun in both["run"]}) == 1
    assert sorted(entry.exit_code for entry in both["exit"]) == [0, 1]


def test_tensorboard_has_curves_and_results(cache, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'dml[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = train(cache, tmp_path / "run", "logger=tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/recall@1", "test/recall@1"} <= set(events.Tags()["scalars"])
    curve = [event.value for event in events.Scalars("val/recall@1")]
    assert len(curve) == 2
    assert found["metrics"]["val"]["recall@1"] == pytest.approx(max(curve), abs=1e-6)
    (result,) = events.Scalars("test/map@r")
    assert result.value == pytest.approx(found["metrics"]["test"]["map@r"], abs=1e-6)
    assert result.step == found["checkpoint"]["step"]


def test_tensorboard_that_is_not_installed_is_named(cache, monkeypatch):
    from dml.config import check

    monkeypatch.setattr(check, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'dml\[tensorboard\]'"):
        cli.checked(["logger=tensorboard", "data=digits", f"data.root={cache}"])


def test_options_of_another_logger_are_refused(cache):
    """They would have no effect."""
    with pytest.raises(ConfigurationError, match="logger has no option 'project'"):
        cli.checked(["logger=csv", "logger.project=x", "data=digits", f"data.root={cache}"])
