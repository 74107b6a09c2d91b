"""Sweeps: every job once, whatever happens to one of them or to the sweep.

Most tests run the jobs in this process, on scikit-learn's digits; the slow ones start real processes and
kill them.
"""

import csv
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dml import cli, job, record, run, sweep
from dml.callbacks import StopOnSignal
from dml.errors import ConfigurationError, RunError
from dml.launchers import Local
from dml.sweep import key_of

ROOT = Path(__file__).resolve().parents[1]


def tiny(cache: Path, *more: str) -> list[str]:
    """Runs of a second: 6 batches, unless `more` says otherwise; a later word wins."""
    words = [
        "-m",
        "data=digits",
        f"data.root={cache}",
        "trainer.max_epochs=1",
        "loader.num_workers=0",
        "loader.eval_batch_size=500",
        "backbone.kwargs.channels=[8,8,8,8]",
        "backbone.image_size=32",
        "backbone.resize=32",
        "trainer.accelerator=cpu",
        "sampler.batches_per_epoch=6",
    ]
    changed = {key_of(word) for word in more}
    return [word for word in words if key_of(word) not in changed] + list(more)


def here(jobs, processes, folder) -> Iterator:
    """A launcher that runs jobs in this process."""
    for each in jobs:
        yield each, cli.exit_code(lambda _, each=each: job.run(each), [])


def weights(directory: Path, name: str = "last") -> dict[str, torch.Tensor]:
    checkpoint = torch.load(directory / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def assert_equal_weights(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / sweep.TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def _no_page(monkeypatch, tmp_path):
    """The report page has tests of its own; here it takes time."""
    from dml.report import sweep_page

    monkeypatch.setattr(sweep_page, "write", lambda directory, out: directory / "none.html")


def test_means_over_seeds_and_every_job_in_its_own_directory(cache, tmp_path, caplog):
    folder = tmp_path / "sweep"
    words = tiny(cache, "loss=circle,triplet", "seed=0,1", f"run_dir={folder}")
    assert sweep.run(words, here) == 0
    rows = table(folder)
    assert [row["job"] for row in rows] == [
        f"loss={loss},seed={seed}" for loss in ("circle", "triplet") for seed in (0, 1)
    ]
    for row in rows:
        found = record.read(folder / row["directory"])
        assert float(row["test/recall@1"]) == found["metrics"]["test"]["recall@1"]
        assert found["seed"] == int(row["seed"])
    printed = caplog.text
    both = [float(row["test/recall@1"]) for row in rows if row["loss"] == "circle"]
    mean, half = sum(both) / 2, abs(both[0] - both[1]) / 2**0.5
    assert f"{mean:.4f} ± {half:.4f}" in printed
    assert (
        len(re.findall(r"\d ± \d", printed)) == 8
    )  # two losses x untrained and trained x two metrics
    plan = json.loads((folder / sweep.FILE).read_text())
    assert [j["directory"] for j in plan["jobs"]] == [row["directory"] for row in rows]
    assert plan["varied"] == ["loss", "seed"]


def test_a_job_that_fails_leaves_its_traceback_and_stops_no_other(
    cache, tmp_path, monkeypatch, capsys
):
    """Whatever the error: out of memory is a RuntimeError of torch's."""
    folder, fit = tmp_path / "sweep", run.fit

    def failing(config, *args, **kwargs):
        if config.seed == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return fit(config, *args, **kwargs)

    monkeypatch.setattr(run, "fit", failing)
    words = tiny(cache, "seed=1,0", f"run_dir={folder}")
    assert sweep.run(words, here) == 1
    assert [row["status"] for row in table(folder)] == ["failed", "finished"]
    told = (folder / "seed=1" / "log.txt").read_text()
    assert "Traceback" in told
    assert "can't allocate memory" in told
    assert "1 of 2" in capsys.readouterr().out
    monkeypatch.setattr(run, "fit", fit)
    before = (folder / "seed=0" / record.FILE).stat().st_mtime_ns
    assert sweep.run(words, here) == 0
    assert (folder / "seed=0" / record.FILE).stat().st_mtime_ns == before
    assert record.read(folder / "seed=1")


def test_a_loss_that_diverges_is_a_failed_job(cache, tmp_path):
    folder = tmp_path / "sweep"
    more = ("optimizer.lr=1e-3,1e30", "optimizer.head_lr=${optimizer.lr}", f"run_dir={folder}")
    assert sweep.run(tiny(cache, *more), here) == 1
    assert record.read(folder / "optimizer.lr=0.001")
    assert "If training diverged" in (folder / "optimizer.lr=1e+30" / "log.txt").read_text()


class StopAt(StopOnSignal):
    """Stands in for a signal at the fourth step."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 4:
            self.received = signal.SIGTERM
        super().on_train_batch_end(trainer, *args)


def test_a_broken_job_goes_on_from_its_checkpoint(cache, tmp_path, monkeypatch):
    """And ends as one that was never broken."""
    words = tiny(cache, "seed=1")
    assert sweep.run([*words, f"run_dir={tmp_path / 'whole'}"], here) == 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "StopOnSignal", StopAt)
        assert sweep.run([*words, f"run_dir={tmp_path / 'broken'}"], here) == 1
    whole, broken = tmp_path / "whole" / "job", tmp_path / "broken" / "job"
    assert not (broken / record.FILE).exists()
    assert sweep.run([*words, f"run_dir={tmp_path / 'broken'}"], here) == 0
    assert "at step 4" in (broken / "log.txt").read_text()
    assert_equal_weights(weights(whole), weights(broken))
    assert record.read(whole)["metrics"] == record.read(broken)["metrics"]


def test_a_job_killed_before_its_first_checkpoint_begins_again(cache, tmp_path):
    """What it left - a log, half a table, the folder of checkpoints - is no obstacle."""
    folder = tmp_path / "sweep"
    words = tiny(cache, "seed=1", f"run_dir={folder}")
    assert sweep.run(words, here) == 0
    killed = folder / "job"
    before = record.read(killed)
    (killed / record.FILE).unlink()
    for path in (killed / "checkpoints").iterdir():
        path.unlink()
    (killed / "metrics.csv").write_text("epoch,step\n0")
    (killed / "checkpoints" / ".last.ckpt.part").write_bytes(b"half")
    assert sweep.run(words, here) == 0
    assert record.read(killed)["metrics"] == before["metrics"]


def test_a_directory_of_another_configuration_is_refused(cache, tmp_path):
    folder = tmp_path / "sweep"
    assert sweep.run(tiny(cache, "seed=0", f"run_dir={folder}"), here) == 0
    with pytest.raises(ConfigurationError) as caught:
        sweep.run(tiny(cache, "seed=0", f"run_dir={folder}", "optimizer.lr=0.123"), here)
    (problem,) = caught.value.problems
    assert problem.where == "optimizer.lr=0.123"
    assert "was started with 0.005" in problem.what


def test_a_record_changed_by_hand_is_refused(cache, tmp_path):
    folder = tmp_path / "sweep"
    words = tiny(cache, "seed=0", f"run_dir={folder}")
    assert sweep.run(words, here) == 0
    path = folder / "job" / record.FILE
    path.write_text(path.read_text().replace('"recall@1": 0.', '"recall@1": 0.9', 1))
    with pytest.raises(RunError, match="changed after it was written"):
        sweep.run(words, here)


def directory(*words: str) -> Path:
    request = sweep.parsed(["-m", *words])
    return sweep.directory_for(request, ["loss"], "sweep")


def test_the_same_command_finds_its_directory_again():
    """In whatever order, by whatever launcher; other words are another sweep."""
    first = directory("loss=circle,triplet", "seed=0")
    assert first == directory("seed=0", "loss=circle,triplet", "launcher=joblib")
    assert first != directory("loss=circle,triplet", "seed=1")
    assert first.parent == Path("runs")
    assert directory("loss=circle,triplet", "run_dir='a b'") == Path("a b")


def test_a_wrong_job_starts_none(cache, tmp_path):
    words = tiny(cache, "loss=triplet,circel", f"run_dir={tmp_path / 'sweep'}")
    with pytest.raises(ConfigurationError, match="circel"):
        sweep.run(words, here)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-m", "run_dir=a,b"], "cannot vary: each job has its own directory"),
        (["-m", "seed=0,1", "ckpt_path=last"], "finds the checkpoints of its jobs"),
        (["-m", "seed=0,0"], "is named twice"),
        (["-m", "seed=interval(0,1)"], "is no list of values"),
        (
            ["-m", "seed=0,1", "launcher=jobli"],
            "launcher has no 'jobli'. Did you mean launcher=joblib",
        ),
        (["-m", "launcher=joblib", "launcher.n_jobs=0"], "must be 1 or more, or -1"),
        (["-m", "launcher=local", "launcher.n_jobs=2"], "launcher has no option 'n_jobs'"),
        (
            ["-m", "launcher=submitit", "launcher.cluster=local", "launcher.partition=gpu"],
            "is for launcher.cluster=slurm",
        ),
        (["launcher=joblib", "seed=0"], "Add -m, or drop it"),
        (["-m", "search=circle"], "exclude each other"),
    ],
)
def test_wrong_sweeps_are_refused(words, told, cache):
    with pytest.raises(ConfigurationError) as caught:
        sweep.run([*words, "data=digits", f"data.root={cache}"], here)
    assert told in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'dml\[ray\]'"):
        sweep.run(["-m", "launcher=ray"], here)


def test_a_dry_run_runs_none(cache, tmp_path, caplog):
    words = tiny(cache, "seed=0,1", f"run_dir={tmp_path / 'sweep'}", "dry_run=true")
    assert sweep.run(words, here) == 0
    assert "these 2 jobs" in caplog.text
    assert not (tmp_path / "sweep").exists()


def test_long_and_strange_names_become_directories():
    first = sweep.name_of(["data.root=/a/b", "seed=0"], ["data.root"])
    second = sweep.name_of(["data.root=_a_b", "seed=0"], ["data.root"])
    assert "/" not in first
    assert first != second
    assert len(sweep.name_of([f"x={'y' * 300}"], ["x"]).encode()) < 200


def test_runs_of_wandb_are_grouped_by_the_sweep():
    made = sweep.make_job("a", Path("runs/sweep_1/a"), ["logger=wandb"])
    assert "logger.group=sweep_1" in made.words
    made = sweep.make_job("a", Path("runs/sweep_1/a"), ["logger=wandb", "logger.group=mine"])
    assert "logger.group=sweep_1" not in made.words


def test_two_processes_do_not_run_the_same_sweep(cache, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunError, match="another process is running"):
            sweep.run(tiny(cache, "seed=0", f"run_dir={folder}"), here)
        other.communicate(b"\n")


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *words]


def left_alone(folder: Path) -> bool:
    """Whether no process writes into any directory of a sweep any more."""
    for lock in folder.glob("*/.lock"):
        with lock.open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
    return True


@pytest.mark.slow
def test_every_job_of_a_sweep_equals_the_run_alone(cache, tmp_path):
    """Bit for bit, the second as the first: nothing of a job reaches the next. Its record tells how to make
    it alone.
    """
    folder = tmp_path / "sweep"
    losses = ("proxy_nca", "triplet")
    line = tiny(cache, f"loss={','.join(losses)}", f"run_dir={folder}", "trainer.max_epochs=2")
    line = [word for word in line if not word.startswith("sampler.")]  # proxy_nca brings another
    assert sweep.run(line, Local()) == 0
    for loss in losses:
        words = [w for w in line if w != "-m" and key_of(w) not in ("loss", "run_dir")]
        alone = run.train(*cli.checked([*words, f"loss={loss}", f"run_dir={tmp_path / loss}"]))
        assert alone is not None
        found = record.read(folder / f"loss={loss}")
        assert found["metrics"] == alone["metrics"]
        assert f"loss={loss}" in found["command"].split()
        assert "-m" not in found["command"].split()
        assert_equal_weights(weights(folder / f"loss={loss}"), weights(tmp_path / loss))


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(cache, tmp_path):
    """SIGKILL within each job, at an epoch and a moment of it that are drawn, then to the end: no finished
    job is repeated, and the results are those of a sweep that nothing happened to.
    """
    losses = ("contrastive", "triplet")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    words = tiny(cache, f"loss={','.join(losses)}", "trainer.max_epochs=4", "loader.num_workers=1")
    assert sweep.run([*words, f"run_dir={whole}"], here) == 0
    draws, finished = random.Random(3), {}
    for loss in losses:
        log, epoch = folder / f"loss={loss}" / "log.txt", draws.randint(1, 4)
        process = subprocess.Popen(
            command(*words, f"run_dir={folder}"),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_for(
            lambda log=log, epoch=epoch: log.exists() and f"epoch {epoch}/4" in log.read_text()
        )
        time.sleep(draws.uniform(0, 0.5))
        process.kill()
        process.wait()
        for path in folder.glob(f"*/{record.FILE}"):
            finished.setdefault(path, path.stat().st_mtime_ns)
    done = subprocess.run(
        command(*words, f"run_dir={folder}"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert left_alone(folder)
    for path, written in finished.items():
        assert path.stat().st_mtime_ns == written, f"{path} was written twice"
    for row in table(folder):
        name = row["directory"]
        assert record.read(folder / name)["metrics"] == record.read(whole / name)["metrics"]
        assert_equal_weights(weights(folder / name), weights(whole / name))


@pytest.mark.slow
def test_a_job_does_not_outlive_its_sweep(cache, tmp_path):
    """It would write into the directory that the next start goes on with."""
    folder = tmp_path / "sweep"
    words = tiny(cache, "seed=0", "trainer.max_epochs=500", f"run_dir={folder}")
    process = subprocess.Popen(command(*words), stderr=subprocess.DEVNULL)
    log = folder / "job" / "log.txt"
    wait_for(lambda: log.exists() and "epoch 2/500" in log.read_text())
    process.kill()
    process.wait()
    wait_for(lambda: left_alone(folder))
    assert (folder / "job" / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "job" / record.FILE).exists()


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(cache, tmp_path):
    folder = tmp_path / "sweep"
    words = tiny(cache, "seed=0,1", "trainer.max_epochs=15", f"run_dir={folder}")
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True)
    log = folder / "seed=0" / "log.txt"
    wait_for(lambda: log.exists() and "epoch 1/15" in log.read_text())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert "Stopped. The same command goes on." in error
    assert not (folder / "seed=1").exists()
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Resuming" in log.read_text()


@pytest.mark.slow
def test_a_job_that_the_system_kills_takes_no_other_along(cache, tmp_path, monkeypatch):
    """As it does where memory runs out; the job's log says so."""
    folder = tmp_path / "sweep"
    words = tiny(cache, "seed=0,1", "trainer.max_epochs=15", f"run_dir={folder}")
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True)
    log = folder / "seed=0" / "log.txt"
    wait_for(lambda: log.exists() and "epoch 1/15" in log.read_text())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 1, error
    assert [row["status"] for row in table(folder)] == ["failed", "finished"]
    assert "killed by SIGKILL, perhaps for want of memory" in log.read_text()


def wait_for(condition, seconds: float = 600) -> None:
    """Until it holds; a machine may be slow."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)
