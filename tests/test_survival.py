"""A run that is killed ends, once started again, as if it had not been; damage is noticed, and said.

Real kills, of processes, are made by killing.py; most tests here break a run off within this process, at
the place in question.
"""

import logging
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import full_disk
from killing import OPTIONS, equal_records, equal_weights, same

from dml import checkpoint_file, checkpoints, cli, loggers, record, run
from dml.checkpoint_file import Damaged
from dml.curves import Curves
from dml.errors import ConfigurationError, RunError
from dml.module import DmlModule
from dml.run_directory import (
    BEST,
    CHECKPOINTS,
    CURVES,
    LAST,
    LOCK,
    PREVIOUS,
    locked,
    remove_leftovers,
    resumable,
)

ROOT = Path(__file__).resolve().parents[1]
FEW = ("trainer.max_epochs=2", "sampler.batches_per_epoch=5", "loader.num_workers=0")  # 10 steps
NO_GAIN = (  # the weights stand still
    "optimizer.lr=1e-12",
    "optimizer.head_lr=1e-12",
)


def words(cache: Path, run_dir: Path, *more: str) -> list[str]:
    return [*OPTIONS, *FEW, f"data.root={cache}", f"run_dir={run_dir}", *more]


def train(cache: Path, run_dir: Path, *more: str) -> None:
    composed, index = cli.checked(words(cache, run_dir, *more))
    assert cli.train_alone(composed, index) == 0


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run answers it."""


def killed(
    cache: Path,
    run_dir: Path,
    owner: Any,
    name: str,
    now: Callable[..., bool],
    *more: str,
) -> None:
    """Begin a run and break it off in a function, where `now` says so of its arguments."""
    function = getattr(owner, name)

    def breaks_off(*args: Any, **kwargs: Any) -> Any:
        if now(*args, **kwargs):
            raise Killed
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, breaks_off)
        with pytest.raises(Killed):
            train(cache, run_dir, *more)
    assert not (run_dir / record.FILE).exists()


def assert_equal_ends(whole: Path, other: Path) -> None:
    assert equal_weights(whole, other)
    assert equal_records(whole, other)
    assert (whole / CURVES).read_bytes() == (other / CURVES).read_bytes()
    assert sorted(p.name for p in other.iterdir()) == sorted(p.name for p in whole.iterdir())


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    cli.set_up_log()
    directory = tmp_path_factory.mktemp("whole") / "run"
    train(cache, directory)
    return directory


def at_step(number: int) -> Callable[..., bool]:
    return lambda module, *args: module.global_step == number


@pytest.fixture(scope="module")
def broken_off(cache, tmp_path_factory) -> Path:
    """A run killed in its eighth step: last.ckpt is of step 6, previous.ckpt of step 5."""
    cli.set_up_log()
    directory = tmp_path_factory.mktemp("broken") / "run"
    killed(cache, directory, DmlModule, "optimizer_step", at_step(7))
    return directory


@pytest.fixture
def part(broken_off, tmp_path) -> Path:
    return shutil.copytree(broken_off, tmp_path / "part")


# ---------------------------------------------------------------- what a checkpoint is


CONTENT = {
    "state_dict": {f"weights {i}": torch.full((20, 5), float(i)) for i in range(3)},
    "global_step": 7,
    "epoch": 1,
    "loops": {"fit_loop": [1, 2, 3]},
}


def test_any_changed_byte_is_noticed_or_changes_nothing(tmp_path):
    """torch.load alone takes most of them for other weights."""
    path = tmp_path / LAST
    checkpoint_file.write(CONTENT, path)
    whole, draws, taken = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        path.write_bytes(changed)
        try:
            found = checkpoint_file.read(path)
        except Damaged:
            try:
                taken += not same(torch.load(path, weights_only=True), CONTENT)
            except Exception:  # torch noticed it, too, in any way
                continue
        else:
            assert same(found, CONTENT)
    assert taken > 30


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "BadZipFile"),
        (lambda path: path.write_bytes(b"\0" * path.stat().st_size), "BadZipFile"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_text("weights"), "BadZipFile"),
        (write_zip, "RuntimeError"),
        (lambda path: torch.save({"weights": torch.ones(3)}, path), "no checkpoint of a run"),
        (lambda path: torch.save([1, 2], path), "no checkpoint of a run"),
        (lambda path: path.unlink(), "there is none"),
    ],
)
def test_what_is_no_checkpoint_is_told_apart(damage, told, tmp_path):
    path = tmp_path / LAST
    checkpoint_file.write(CONTENT, path)
    damage(path)
    with pytest.raises(Damaged, match=told):
        checkpoint_file.read(path)


def test_the_checkpoint_before_is_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint_file.write({**CONTENT, "global_step": step}, tmp_path / LAST)
        checkpoint_file.write({**CONTENT, "global_step": step}, tmp_path / BEST)
    names = (LAST, PREVIOUS, BEST)
    assert [checkpoint_file.read(tmp_path / name)["global_step"] for name in names] == [3, 2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_a_full_disk_leaves_both_checkpoints(tmp_path):
    for step in (1, 2):
        checkpoint_file.write({**CONTENT, "global_step": step}, tmp_path / LAST)
    with full_disk(1000), pytest.raises((OSError, RuntimeError)):
        checkpoint_file.write({**CONTENT, "global_step": 3}, tmp_path / LAST)
    found = [checkpoint_file.read(tmp_path / name)["global_step"] for name in (LAST, PREVIOUS)]
    assert found == [2, 1]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    """The one name is then free for a moment; what is there is found under the other."""

    def refuse(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    folder = tmp_path / CHECKPOINTS
    folder.mkdir()
    for step in (1, 2):
        checkpoint_file.write({**CONTENT, "global_step": step}, folder / LAST)
    assert checkpoint_file.read(folder / PREVIOUS)["global_step"] == 1
    (folder / LAST).unlink()  # killed between the renames
    assert resumable(tmp_path) == [folder / PREVIOUS]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / CHECKPOINTS).mkdir()
    kept = [tmp_path / LOCK, tmp_path / ".notes", tmp_path / CHECKPOINTS / LAST]
    left = [tmp_path / CHECKPOINTS / f".{LAST}.x1", tmp_path / f".{record.FILE}.y2"]
    for path in (*kept, *left):
        path.touch()
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)


def test_everything_is_in_a_checkpoint(broken_off):
    """What dml/checkpoints.py says; that it is put back is what the runs below compare."""
    content = checkpoint_file.read(broken_off / CHECKPOINTS / LAST)
    names = {name.split(".")[0] for name in content["state_dict"]}
    assert {"encoder", "memory", "averaged"} <= names
    assert content["state_dict"]["memory.filled"] == 64
    assert len(content["optimizer_states"][0]["state"]) > 0
    assert content["lr_schedulers"][0]["last_epoch"] == content["global_step"] == 6
    states = {name.split("{")[0]: state for name, state in content["callbacks"].items()}
    assert Path(states["KeepBest"]["best_model_path"]).name == BEST
    assert float(states["StopEarly"]["best_score"]) == float(states["KeepBest"]["best_model_score"])
    assert content["training_seconds"] > 0
    assert content["unreadable"] == {}
    assert content["curves"]["rows"] == 6  # of five steps and a validation
    assert content["curves"]["row"]["train/loss"] > 0


# ---------------------------------------------------------------- killed, and started again


def test_killed_within_an_epoch_and_moved(whole, broken_off, cache, tmp_path):
    """With cross-batch memory, averaged weights, dropout and early stopping; on from another place, as on
    another machine. The old one is gone.
    """
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(broken_off, moved)
    hidden = broken_off.with_name("hidden")
    broken_off.rename(hidden)
    try:
        train(cache, moved)
    finally:
        hidden.rename(broken_off)
    assert f"{LAST} at step 6" in (moved / "log.txt").read_text()
    assert_equal_ends(whole, moved)


def test_goes_on_in_another_directory_from_a_named_checkpoint(whole, part, cache, tmp_path):
    """With the best weights so far and the curves, which the checkpoint refers to."""
    there = part / CHECKPOINTS / LAST
    train(cache, tmp_path / "other", f"ckpt_path={there}")
    assert equal_weights(whole, tmp_path / "other")
    assert (whole / CURVES).read_bytes() == (tmp_path / "other" / CURVES).read_bytes()


def test_killed_before_the_first_checkpoint_begins_anew(whole, cache, tmp_path):
    """No row of the first start stays in metrics.csv."""
    killed(cache, tmp_path / "run", DmlModule, "optimizer_step", at_step(1))
    assert (tmp_path / "run" / CURVES).exists()
    train(cache, tmp_path / "run")
    assert_equal_ends(whole, tmp_path / "run")


def test_killed_between_best_and_last_checkpoint(whole, cache, tmp_path):
    """best.ckpt is of the second epoch, last.ckpt of a step within it."""

    def now(content: dict, path: Path) -> bool:
        return path.name == LAST and content["global_step"] == 10

    killed(cache, tmp_path / "run", checkpoint_file, "write", now)
    train(cache, tmp_path / "run")
    assert_equal_ends(whole, tmp_path / "run")


def test_last_checkpoint_knows_of_its_epoch_what_was_best(whole):
    """Else an epoch that is worse would replace the best one after a kill."""
    content = checkpoint_file.read(whole / CHECKPOINTS / LAST)
    (state,) = [s for name, s in content["callbacks"].items() if name.startswith("StopEarly")]
    (best,) = [s for name, s in content["callbacks"].items() if name.startswith("KeepBest")]
    curve = [float(v) for row in rows(whole) if (v := row.get("val/recall@1"))]
    assert float(best["best_model_score"]) == float(state["best_score"])
    assert float(best["best_model_score"]) == pytest.approx(max(curve), abs=1e-6)
    gains = [score > max(curve[:epoch], default=-1) for epoch, score in enumerate(curve)]
    assert state["wait_count"] == gains[::-1].index(True)


def rows(directory: Path) -> list[dict[str, Any]]:
    from dml import tables

    return tables.read_csv(directory / CURVES)


@pytest.fixture(scope="module")
def stopped_early(cache, tmp_path_factory) -> Path:
    """Killed in the final evaluation, after early stopping within nine epochs."""
    cli.set_up_log()
    directory = tmp_path_factory.mktemp("stopped") / "run"
    more = ("selection.patience=1", "trainer.max_epochs=9", *NO_GAIN)
    killed(cache, directory, run, "final_evaluation", lambda *args: True, *more)
    return directory


def test_a_run_that_was_stopped_early_trains_no_further(stopped_early, cache, tmp_path):
    copy = shutil.copytree(stopped_early, tmp_path / "run")
    before = checkpoint_file.read(copy / CHECKPOINTS / LAST)
    train(cache, copy, "selection.patience=1", "trainer.max_epochs=9", *NO_GAIN)
    after = checkpoint_file.read(copy / CHECKPOINTS / LAST)
    assert before["global_step"] == after["global_step"] < 9 * 5
    assert record.read(copy)["checkpoint"]["epoch"] == before["epoch"]  # the epoch before the last


def test_damaged_best_weights_are_no_others(stopped_early, cache, tmp_path):
    """They are refused, by name; the last epoch's are taken if one says so."""
    copy = shutil.copytree(stopped_early, tmp_path / "run")
    flip(copy / CHECKPOINTS / BEST)
    more = ("selection.patience=1", "trainer.max_epochs=9", *NO_GAIN)
    with pytest.raises(
        RunError, match=r"best\.ckpt is damaged .*CRC-32.*\nAdd selection\.rule=last"
    ):
        train(cache, copy, *more)
    train(cache, copy, *more, "selection.rule=last")
    assert record.read(copy)["checkpoint"]["rule"] == "last epoch"


def flip(path: Path) -> None:
    """Change one byte in the middle of the largest tensor."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, part, cache, caplog):
    folder = part / CHECKPOINTS
    flip(folder / LAST)
    damaged = (folder / LAST).read_bytes()
    with caplog.at_level(logging.WARNING, "dml"):
        train(cache, part)
    (told,) = [r.getMessage() for r in caplog.records if "DAMAGED" in r.getMessage()]
    assert f"{folder / LAST} (" in told
    assert "CRC-32" in told
    assert f"goes on from step 5, in {PREVIOUS}" in told
    assert (folder / f"{LAST}.damaged").read_bytes() == damaged
    assert_equal_ends(whole, part)


def test_no_whole_checkpoint_is_an_error_that_names_them(part, cache):
    """And not a run that begins anew: one of them may yet be saved."""
    folder = part / CHECKPOINTS
    (folder / LAST).write_bytes(b"")
    flip(folder / PREVIOUS)
    for _ in range(2):
        with pytest.raises(RunError) as caught:
            train(cache, part)
        assert f"{folder / LAST}: it is empty" in str(caught.value)
        assert f"{folder / PREVIOUS}: " in str(caught.value)
    assert sorted(p.name for p in folder.iterdir()) == sorted([BEST, LAST, PREVIOUS])


def test_a_second_damaged_file_does_not_replace_the_first(tmp_path):
    for number in (1, 2):
        (tmp_path / LAST).write_bytes(bytes([number]))
        checkpoint_file.write(CONTENT, tmp_path / PREVIOUS)
        found = checkpoints.newest_whole([tmp_path / LAST, tmp_path / PREVIOUS])
        assert found is not None
        assert found.path == tmp_path / PREVIOUS
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"{LAST}.damaged", f"{LAST}.damaged.2", PREVIOUS]


def test_lost_curves_are_said(tmp_path, caplog):
    resumed = checkpoints.Resumed(tmp_path / LAST, step=6, rows=6, row=None)
    with caplog.at_level(logging.WARNING, "dml"):
        loggers.metrics_csv(tmp_path, resumed)
    assert "has 0 rows, and had 6 at step 6: the curves have a gap" in caplog.text


# ---------------------------------------------------------------- one command


def test_a_finished_run_is_left_as_it_is(whole, cache, caplog):
    """So that a loop that starts the command until it succeeds ends."""
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != LOCK}
    with caplog.at_level(logging.INFO, "dml"):
        train(cache, whole)
    assert "holds a finished run: nothing is left to do" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.name != LOCK}
    with pytest.raises(ConfigurationError, match="was started with"):
        train(cache, whole, "loss.positive_margin=0.123")


def test_auto_needs_a_run_directory(cache):
    with pytest.raises(ConfigurationError, match=r"ckpt_path=auto +of which run\? Add run_dir=DIR"):
        cli.checked(["data=digits", f"data.root={cache}", "ckpt_path=auto"])


def test_steps_between_checkpoints_are_counted_from_one(cache, tmp_path):
    with pytest.raises(ConfigurationError, match=r"trainer\.checkpoint_every_n_steps=0"):
        cli.checked(words(cache, tmp_path, "trainer.checkpoint_every_n_steps=0"))


def test_a_directory_has_one_run_at_a_time(cache, tmp_path):
    """The lock is a process's: the other one is real."""
    code = "import sys; from pathlib import Path; from dml.run_directory import locked\n"
    code += "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        composed, index = cli.checked(words(cache, tmp_path))
        with pytest.raises(RunError, match="another process is writing into"):
            cli.train_alone(composed, index)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        other.kill()
        other.wait()
        with locked(tmp_path):
            pass


def test_metrics_are_written_whole(tmp_path):
    """Rows of a session before stay, columns may come later, and nothing half-written has the name."""
    path = tmp_path / CURVES
    curves = Curves(path, [{"step": "0", "train/loss": "0.5"}])
    curves.log_metrics({"val/recall@1": torch.tensor(0.25)}, step=1)
    assert curves.write() == 2
    assert path.read_text().splitlines() == ["step,train/loss,val/recall@1", "0,0.5,", "1,,0.25"]
    curves.log_metrics({"train/loss": 1.0}, step=2)
    before = path.read_bytes()
    with full_disk(10), pytest.raises(OSError, match=CURVES):
        curves.write()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [CURVES]


@pytest.mark.slow
def test_processes_killed_at_drawn_moments(tmp_path):
    """docs/survival.md has the table of twenty."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "killing.py"), "kills=4", f"out={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every run ended as the uninterrupted one" in done.stdout
