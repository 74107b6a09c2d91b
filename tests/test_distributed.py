"""Two and three processes train the model, and measure the numbers, that one does.

Real processes over Gloo, on the CPU. In float64, so that what is left is a mistake or nothing: after ten
steps rounding is below 1e-9, while a wrong scale, order, statistic or random state shows at once.
"""

import csv
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import distributed_cases
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from distributed_cases import Case
from omegaconf import OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment

from dml import build, cli, distributed, processes, record, run
from dml.errors import ConfigurationError
from dml.run_directory import LOCK

ROOT = Path(__file__).resolve().parents[1]
NETWORK = (
    "loader.num_workers=0",
    "backbone.kwargs.channels=[8,8,8,8]",
    "backbone.image_size=32",
    "backbone.resize=32",
    "trainer.accelerator=cpu",
    "optimizer=sgd",
    "optimizer.lr=0.01",
    "optimizer.head_lr=0.01",
)
FROZEN = ("backbone.freeze_bn=true",)  # statistics of the batch cost messages, hence time
CLASSES = ("sampler.classes_per_batch=6", "sampler.images_per_class=2")
IMAGES = ("sampler.batch_size=12",)

CASES = {
    "pair": ("loss=contrastive", *CLASSES),  # BatchNorm follows the batch
    "tuple": ("loss=n_pair", "sampler.classes_per_batch=6", *FROZEN),
    "proxy": ("loss=proxy_nca", *IMAGES, *FROZEN),
    "ranks": ("loss=smooth_ap", *CLASSES, *FROZEN),
    # The queue is used from the third step on, and goes round.
    "memory": (
        *("loss=contrastive", *CLASSES, *FROZEN),
        *("memory=xbm", "memory.size=40", "memory.start_step=2"),
    ),
    # Each process's part in chunks of its own, with all that makes more passes or more weights of it. Not
    # clipped: that would forgive a gradient of the wrong length.
    "chunks": (
        *("loss=circle", *CLASSES, *FROZEN, "trainer.batch_chunks=2", "averaging=ema"),
        *("memory=xbm", "memory.size=40", "memory.start_step=2"),
        "optimizer.sam_rho=0.05",
    ),
}
MORE = {
    # A loss with parameters over pairs, a miner that draws at random.
    "miner": ("loss=margin", "miner=distance_weighted", *CLASSES, *FROZEN),
    "multi_similarity": ("loss=multi_similarity", *CLASSES, *FROZEN),
    "circle": ("loss=circle", *CLASSES, *FROZEN, "averaging=ema"),
    "lifted": ("loss=lifted_structure", *CLASSES, *FROZEN, "trainer.gradient_clip_val=0.1"),
    "arcface": ("loss=arcface", *IMAGES, "backbone.freeze_epochs=1"),
    "soft_triple": ("loss=soft_triple", *IMAGES),  # with a term of the parameters alone
    "island": ("loss=island", *IMAGES, *FROZEN),
    "proxy_anchor": ("loss=proxy_anchor", *IMAGES, *FROZEN),
    "sum": ("loss=sum", *CLASSES, "optimizer.sam_rho=0.05"),
    "running mean": (
        *("loss=triplet", *CLASSES, *FROZEN),
        *("regularizer=sec", "regularizer.momentum=0.5"),
    ),
    "levels": ("loss=triplet", *CLASSES, *FROZEN, "regularizer=mdr"),
    "looked at": ("loss=arcface", *IMAGES, *FROZEN, "callbacks=forensics", "callbacks.every=2"),
    # 12 images in 3 processes and 4 chunks are one image a chunk.
    "plain chunks": ("loss=smooth_ap", *CLASSES, *FROZEN, "trainer.batch_chunks=4"),
    "clipped chunks": (
        *("loss=circle", *CLASSES, *FROZEN, "trainer.batch_chunks=2"),
        *("optimizer.sam_rho=0.05", "trainer.gradient_clip_val=0.1"),
    ),
    "chunks of a share": ("loss=proxy_nca", *IMAGES, *FROZEN, "trainer.batch_chunks=2"),
    "swa": ("loss=contrastive", *CLASSES, "averaging=swa", "averaging.start=0.5"),
}


def glyphs(cache: Path, *more: str, precision: str = "64-true") -> list[str]:
    steps = ("trainer.max_steps=10", f"trainer.precision={precision}", "trainer.devices=auto")
    return ["data=glyphs", f"data.root={cache}", *NETWORK, *steps, *more]


def environment(rank: int, world: int) -> dict[str, str]:
    """Of one process of several, as torchrun makes it."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    own |= {"OMP_NUM_THREADS": 1, "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": ROOT}
    return {**os.environ, **{k: str(v) for k, v in own.items()}}


def prepared(words: list[str]) -> Case:
    """A case composed and checked, once for all processes: Hydra takes longer than ten steps."""
    case = Case(*cli.checked(words))
    case.composed.__dict__["choices"] = []  # for a table that nobody reads
    return case


def stopped(case: Case) -> Case:
    """That is to be stopped within its steps."""
    return Case(deepcopy(case.composed), case.index, stopped=True)


def resumed(case: Case, run_dir: Path) -> Case:
    """That goes on from the checkpoint of a stopped one."""
    case = Case(deepcopy(case.composed), case.index)
    case.composed.config.ckpt_path = str(run_dir / "checkpoints" / "last.ckpt")
    assert torch.load(case.composed.config.ckpt_path, weights_only=True)["global_step"] == 6
    return case


def together(cases: dict[str, Case], world: int, folder: Path) -> dict[str, dict]:
    """name -> weights after ten steps of that run in `world` processes."""
    folder.mkdir()
    (folder / "cases").write_bytes(pickle.dumps(cases))
    started = [
        subprocess.Popen(
            [sys.executable, distributed_cases.__file__, folder / "cases", folder],
            env=environment(rank, world),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=900)[1] for process in started]
    assert [process.returncode for process in started] == [0] * world, "\n".join(said)
    return {name: weights(folder / name) for name in cases}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def difference(one: dict, other: dict) -> tuple[float, str]:
    """The largest difference of two state dicts and where it is; infinite where either is no number."""
    assert one.keys() == other.keys()

    def apart(key: str) -> float:
        gap = (one[key].double() - other[key].double()).abs()
        return gap.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()

    return max((apart(key), key) for key in one)


def test_no_number_is_no_agreement():
    one = {"a": torch.tensor([0.5]), "b": torch.tensor([1.0])}
    assert difference(one, {**one, "b": torch.tensor([1.25])}) == (0.25, "b")
    assert difference(one, {**one, "b": torch.tensor([torch.nan])}) == (torch.inf, "b")


def alone(case: Case, folder: Path) -> dict[str, torch.Tensor]:
    """Weights after ten steps in one process, with the whole batch at once."""
    case = Case(deepcopy(case.composed), case.index, case.stopped)
    case.composed.config.trainer.batch_chunks = 1
    distributed_cases.ten_steps(case, folder)
    return weights(folder)


def assert_same_models(words: dict, worlds: tuple[int, ...], cache: Path, tmp_path: Path) -> None:
    """Weights after ten steps, and what is collected to be evaluated, in any number of processes.

    The last case is also stopped in several processes and resumed in one, and the other way round.
    """
    cases = {name: prepared(glyphs(cache, *each)) for name, each in words.items()}
    last = list(cases)[-1]
    expected = {}
    for name, case in cases.items():
        expected[name] = alone(case, tmp_path / name)
        torch.manual_seed(case.composed.config.seed)
        before = build.encoder(case.composed.config).head.linear.weight
        moved = (expected[name]["encoder.head.linear.weight"] - before).norm()
        assert moved > 1e-4, f"{name} learned nothing"
    alone(stopped(cases[last]), tmp_path / "stopped")
    cases |= {
        "stopped": stopped(cases[last]),
        "resumed": resumed(cases[last], tmp_path / "stopped"),
    }
    rows = distributed_cases.evaluated(cases[last].index.part("test"))
    assert len(rows["8 images without [0, 1, 2, 3]"][0]) == 4
    for world in worlds:
        folder = tmp_path / str(world)
        found = together(cases, world, folder)
        goes_on = resumed(cases[last], folder / "stopped")
        found["stopped"] = alone(goes_on, folder / "goes on")
        for name, state in found.items():
            largest, where = difference(expected.get(name, expected[last]), state)
            assert largest < 1e-9, f"{name}, {world} processes: {where} is off by {largest:.3g}"
        evaluated = torch.load(folder / "evaluated.pt", weights_only=True)
        assert evaluated.keys() == rows.keys()
        for name, own in rows.items():
            for one, other in zip(own, evaluated[name], strict=True):
                assert torch.equal(one, other), f"{name}, {world} processes"


def test_two_processes_train_the_model_of_one(cache, tmp_path):
    """Pair, tuple, proxy and ranking losses, memory, miner: trunk, head, loss and queue after ten steps.

    And few images, some of them unreadable, come together as in one process.
    """
    assert_same_models(CASES, (2,), cache, tmp_path)


@pytest.mark.slow
def test_three_processes_train_the_model_of_one(cache, tmp_path):
    assert_same_models(CASES, (3,), cache, tmp_path)


@pytest.mark.slow
def test_every_kind_of_term_is_that_of_one_process(cache, tmp_path):
    assert_same_models(MORE, (2, 3), cache, tmp_path)


@pytest.mark.slow
def test_in_float32_two_processes_differ_by_rounding(cache, tmp_path):
    """With frozen statistics. Those of the batch amplify it: docs/scaling.md says how far."""
    case = prepared(glyphs(cache, *CASES["ranks"], precision="32-true"))
    expected = alone(case, tmp_path / "one")
    found = together({"whole": case, "stopped": stopped(case)}, 2, tmp_path / "2")
    goes_on = resumed(case, tmp_path / "2" / "stopped")
    for state in (found["whole"], alone(goes_on, tmp_path / "goes on")):
        largest, where = difference(expected, state)
        assert largest < 1e-5, f"{where} is off by {largest:.3g}"


# ---------------------------------------------------------------- whole runs


def digits(cache: Path, run_dir: Path, *more: str) -> list[str]:
    """A run of two epochs; 363 validation and 533 test images, which two processes cannot halve.

    In float64 as well: in float32 such a small network with BatchNorm makes of a rounding of 1e-7 a
    difference that shows, within these eight steps.
    """
    return [
        "data=digits",
        f"data.root={cache}",
        f"run_dir={run_dir}",
        *NETWORK,
        "trainer.max_epochs=2",
        "trainer.precision=64-true",
        "sampler.classes_per_batch=4",
        "sampler.images_per_class=4",
        "sampler.batches_per_epoch=4",
        "loader.eval_batch_size=100",
        *more,
    ]


def dml_train(*words: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        **more,
    )


def curve(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_in_two_processes_leaves_the_run_of_one(cache, tmp_path):
    """Through the command line: one record, log and curve, and the numbers of one process."""
    alone = run.train(*cli.checked(digits(cache, tmp_path / "one")))
    words = digits(cache, tmp_path / "two", "trainer.devices=2")
    done = dml_train(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2") == 1
    assert done.stdout.count("chosen by") == 1
    assert "Warning" not in done.stderr
    together = record.read(tmp_path / "two")
    assert together["hardware"]["processes"] == 2
    assert together["command"] == shlex.join(["python", "train.py", *words])
    assert alone is not None
    assert together["checkpoint"] == alone["checkpoint"]
    assert together["data"] == alone["data"]
    for part, metrics in alone["metrics"].items():
        assert together["metrics"][part] == pytest.approx(metrics, abs=1e-4), part
    largest, where = difference(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert largest < 1e-5, where
    pairs = list(zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True))
    assert pairs
    for one, two in pairs:
        assert one.keys() == two.keys()
        for key in one:
            assert float(one[key] or 0) == pytest.approx(float(two[key] or 0), rel=1e-3), key
    one, two = ({p.name for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert two - {LOCK} == one  # it is the command that locks its directory


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_stopped_run_goes_on_with_another_number_of_processes(first, then, cache, tmp_path):
    """SIGTERM to the command: all processes stop after the same step; resumed, it ends alike.

    With a loss whose training does not amplify rounding: with loss=circle these hundred steps make 1 of
    one float64 digit in the first weights, alone and without a stop.
    """
    more = ("loss=contrastive", "trainer.max_epochs=5", "sampler.batches_per_epoch=20", *FROZEN)
    run.train(*cli.checked(digits(cache, tmp_path / "whole", *more)))
    words = digits(cache, tmp_path / "cut", *more)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words, f"trainer.devices={first}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for(tmp_path / "cut" / "log.txt", "epoch 1/5")
        process.terminate()
        _, said = process.communicate(timeout=900)
    finally:
        process.kill()  # its processes then end by themselves
    assert process.returncode == processes.SAVED, said
    assert said.count("Resume with") == 1
    done = dml_train(*words, "ckpt_path=last", f"trainer.devices={then}")
    assert done.returncode == 0, done.stderr
    largest, where = difference(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert largest < 1e-9, f"{where} is off by {largest:.3g}"


def wait_for(path: Path, text: str, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, f"{text!r} never came in {path}"
        time.sleep(0.05)


@pytest.mark.slow
def test_one_process_that_fails_ends_all_and_speaks_alone(cache, tmp_path):
    """An image that only the second process reads is broken: its message once, no traceback, exit code 1."""
    words = digits(cache, tmp_path / "run", "trainer.devices=2", *FROZEN)
    _, index = cli.checked(words)
    val = index.part("val")
    broken = val.path(len(val) - 1)
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    try:
        begun = time.monotonic()
        done = dml_train(*words)
    finally:
        broken.write_bytes(whole)
    assert done.returncode == 1
    assert done.stderr.count("cannot read the image") == 1
    assert "process 1 of 2: Error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 900  # and not trainer.timeout, half an hour
    assert "cannot read the image" in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "record.json").exists()


@pytest.mark.slow
def test_a_killed_process_ends_all(cache, tmp_path):
    """As the kernel kills where memory is short: in words, with what is kept, and soon."""
    words = digits(cache, tmp_path / "run", "trainer.devices=2", "trainer.max_epochs=500", *FROZEN)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for(tmp_path / "run" / "log.txt", "epoch 2/500")
        os.kill(worker(process.pid, rank=1), signal.SIGKILL)
        begun = time.monotonic()
        _, said = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert time.monotonic() - begun < 300  # seconds are enough; but trainer.timeout is half an hour
    assert said.count("process 1 was ended by SIGKILL (out of memory?)") == 1
    assert said.count("another of the 2 processes has gone") == 1
    assert "ckpt_path=last" in said
    assert "Traceback" not in said
    assert "gloo" not in said


def worker(parent: int, rank: int) -> int:
    """Process id of one of the processes that a command has started."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"process {parent} has no child of rank {rank}")


@pytest.mark.slow
def test_however_they_are_started_processes_leave_the_same_run(cache, tmp_path):
    """torchrun, and srun as far as its variables go: the same weights to the last digit."""
    more = ("trainer=ddp", "trainer.max_epochs=1", *FROZEN)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    clean["OMP_NUM_THREADS"] = "1"

    def start(launcher: tuple[str, ...], name: str, **more_variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                *launcher,
                str(ROOT / "train.py"),
                *digits(cache, tmp_path / name, *more),
            ],
            env=clean | more_variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
    }
    step |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    started = [start(torchrun, "torchrun")]
    for task in ("0", "1"):
        own = {"SLURM_PROCID": task, "SLURM_LOCALID": task, "SLURM_NODEID": "0"}
        started.append(start((), "srun", **step, **own))
    try:
        said = [process.communicate(timeout=900)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0, 0], "\n".join(said)
    for name, lines in (("torchrun", said[0]), ("srun", "".join(said[1:]))):
        assert lines.count("epoch 1/1") == 1, name
        assert record.read(tmp_path / name)["hardware"]["processes"] == 2, name
    assert difference(weights(tmp_path / "torchrun"), weights(tmp_path / "srun"))[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("whole_class", [False, True])
def test_unreadable_images_are_skipped_and_counted_as_one_process_does(
    whole_class, cache, tmp_path
):
    """Parts of a batch of unequal size, even empty ones, and an evaluation of unequal parts.

    Even a whole batch may be gone, of which no BatchNorm takes a mean, and a process's part in validation.
    """
    words = digits(cache, tmp_path / "one", "data.on_bad_image=skip")
    if whole_class:  # of the two in a batch
        words += ["loss=contrastive", "sampler.classes_per_batch=2", "sampler.batches_per_epoch=10"]
    else:
        words = [word for word in words if not word.startswith("sampler.")]
        words += ["loss=arcface", "sampler.batch_size=60"]
    composed, index = cli.checked(words)
    broken = [index.part(split).path(i) for split in ("train", "val", "test") for i in range(25)]
    if whole_class:
        train, val = index.part("train"), index.part("val")
        lost = np.isin(train.labels, gone := (0, 1))
        drawn = [
            part
            for epoch in (0, 1)
            for part in build.sampler(composed.config, train).batches(epoch)
        ]
        assert any(lost[part].all() for part in drawn), f"no batch of the classes {gone}"
        broken = [train.path(i) for i in np.flatnonzero(lost)]
        broken += [val.path(i) for i in range(len(val) // 2, len(val))]
    whole = {path: path.read_bytes() for path in broken}
    for path in broken:
        path.write_bytes(b"no image")
    try:
        alone = run.train(composed, index)
        two = [word.replace(f"{tmp_path / 'one'}", f"{tmp_path / 'two'}") for word in words]
        done = dml_train(*two, "trainer.devices=2")
    finally:
        for path, data in whole.items():
            path.write_bytes(data)
    assert done.returncode == 0, done.stderr
    together = record.read(tmp_path / "two")
    assert alone is not None
    assert set(together["data"]["unreadable"]) == set(alone["data"]["unreadable"])
    assert alone["data"]["unreadable"]
    assert together["metrics"]["test"] == pytest.approx(alone["metrics"]["test"], abs=1e-4)
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "two"))[0] < 1e-5


# ---------------------------------------------------------------- what is refused


def problem(words: list[str]) -> str:
    with pytest.raises(ConfigurationError) as raised:
        cli.checked(words)
    return str(raised.value)


def test_a_batch_that_cannot_be_shared_evenly_is_refused_at_once(cache, tmp_path):
    said = problem(digits(cache, tmp_path / "run", "trainer.devices=3"))
    assert "sampler.classes_per_batch=4" in said
    assert "cannot be shared evenly by 3 processes" in said


@pytest.mark.parametrize("devices", ["0", "-1", "[]", "[0,0]", "[0,-1]", "two", "1.5", "true"])
def test_devices_that_cannot_be_counted_are_refused(devices, cache, tmp_path):
    assert "trainer.devices=" in problem(
        digits(cache, tmp_path / "run", f"trainer.devices={devices}")
    )


def test_a_list_of_devices_is_of_gpus(cache, tmp_path):
    assert "Give how many" in problem(digits(cache, tmp_path / "run", "trainer.devices=[0,1]"))


def test_processes_started_without_trainer_ddp_are_refused(cache, tmp_path, monkeypatch):
    """Else eight copies of one run would write into one directory."""
    for name, value in environment(1, 4).items():
        monkeypatch.setenv(name, value)
    said = problem(digits(cache, tmp_path / "run"))
    assert "torchrun started 4 processes on this machine" in said
    assert "Add trainer=ddp" in said
    cli.checked(digits(cache, tmp_path / "run", "trainer.devices=auto"))


def test_slurm_says_which_process_this_is(monkeypatch):
    """In a step that srun started; a batch script alone is one process, whatever it asked for."""
    for name in processes.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_PROCID", "11")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert processes.place() == processes.Place()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "8(x2)")
    here = processes.place()
    assert (here.rank, here.world_size, here.local_rank, here.local_world_size) == (11, 16, 3, 8)
    assert (here.nodes, here.started_by) == (2, "srun")


def test_within_a_batch_script_lightning_requeues_nothing(monkeypatch):
    """It would take Slurm's SIGUSR1, and a checkpoint of its own, from those who answer it here."""
    for name in processes.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_JOB_ID", "4321")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert SLURMEnvironment.detect()
    config = OmegaConf.create({"trainer": {"devices": 1, "accelerator": "cpu", "timeout": 9}})
    trainer = pl.Trainer(accelerator="cpu", logger=False, **distributed.trainer_arguments(config))
    assert not isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)


def test_a_program_of_ones_own_is_told_to_start_the_processes(cache, tmp_path):
    composed, index = cli.checked(digits(cache, tmp_path / "run", "trainer.devices=2"))
    with pytest.raises(ConfigurationError, match="must be started by dml-train or torchrun"):
        run.train(composed, index)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("data", "epochs"), [("glyphs", 16), ("digits", 16), ("cub200", 20)])
def test_trainer_ddp_keeps_the_length_that_the_data_set_brings(data, epochs):
    """Else the same command on more GPUs would train another model."""
    from dml.config import compose

    composed, problems = compose.compose_all([f"data={data}", "trainer=ddp"])
    assert not problems
    assert composed.config.trainer.max_epochs == epochs
    assert composed.config.trainer.devices == "auto"
    assert [c.option for c in composed.choices if c.group.startswith("trainer")] == ["ddp"]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 0, 1: 0}, 0),
        ({0: 1, 1: 2}, 2),
        ({0: 143, 1: 143}, 143),
        ({0: -15, 1: -15}, 143),
        ({1: -9}, 1),
        ({0: 1, 1: -9}, 1),
    ],
)
def test_the_exit_code_is_that_of_the_process_that_failed(codes, expected):
    assert processes.verdict(codes) == expected
