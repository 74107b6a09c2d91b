"""Kill a training run at drawn moments, start it again with the same command, and compare the end.

    python tests/killing.py kills=20 seed=0 [jobs=1] [out=DIR]

One small run on scikit-learn's digits goes through uninterrupted. Then, for each kill, a run of its own
begins with the same options, is killed with SIGKILL - it and its workers - and is started again with the
identical command until it ends. Compared with the uninterrupted run are, bit for bit: the weights and the
optimizer's state in last.ckpt and best.ckpt; metrics.csv; and the record without what tells of time, place
and memory. Exit code 0: all equal.

A start is a fork of this process, which has imported torch, and nothing else, before: that spares forty
times the seconds of importing. What the run does is dml-train's, from its words to its exit code.

Where a kill is aimed at a phase, the run itself sends the signal, at the drawn occurrence of that phase, as
soon as a drawn share of it is over; else this process does so after a drawn time. What was going on is
read afterwards from a trace, to which the run wrote the beginning and the end of every phase.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dml import checkpoint_file, cli, record, run
from dml.module import DmlModule
from dml.run_directory import BEST, CHECKPOINTS, CURVES, LAST

OPTIONS = (
    "data=digits",
    "loss=contrastive",
    "memory=xbm",
    "memory.size=64",
    "memory.start_step=2",
    "averaging=ema",
    "averaging.decay=0.9",
    "backbone.kwargs.channels=[8,8,8,8]",
    "backbone.kwargs.drop_rate=0.2",
    "backbone.image_size=32",
    "backbone.resize=32",
    "sampler.classes_per_batch=4",
    "sampler.images_per_class=4",
    "sampler.batches_per_epoch=7",
    "selection.patience=3",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.checkpoint_every_n_steps=2",
    "trainer.log_every_n_steps=1",
    "loader.num_workers=2",
    "loader.eval_batch_size=100",
    "ckpt_path=auto",
)

STEP, WRITING, NAMING = "step", "writing a checkpoint", "renaming a checkpoint"
VALIDATION, EVALUATION, RECORD, ANY = "validation", "final evaluation", "record", "any time"
AIMS = (STEP, WRITING, VALIDATION, ANY, WRITING, NAMING, STEP, VALIDATION, EVALUATION, RECORD)
# Entries of a record that tell when, where and how often a run was started.
OF_THE_SESSION = (
    "command",
    "overrides",
    "started",
    "seconds",
    "peak_memory_bytes",
    "sha256",
    "code",
)


def main(words: list[str]) -> int:
    """See the module."""
    given = dict(word.split("=", 1) for word in words)
    if unknown := given.keys() - {"kills", "seed", "jobs", "out"}:
        raise SystemExit(f"no option: {', '.join(sorted(unknown))}")
    kills, seed = int(given.get("kills", 20)), int(given.get("seed", 0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.get("out", scratch)).absolute()
        if folder.exists() and any(folder.iterdir()):
            raise SystemExit(f"out={folder} is not empty")
        folder.mkdir(parents=True, exist_ok=True)
        rows = killed_runs(folder, kills, seed, int(given.get("jobs", 1)))
    equal = all(all(row[-3:]) for row in rows)
    told = f"{kills} kills, seed {seed}: " + (
        "every run ended as the uninterrupted one." if equal else "NOT ALL EQUAL."
    )
    print(told, flush=True)
    return 0 if equal else 1


HEAD = ("kill", "aimed at", "killed in", "resumed at step", "weights", "record", "curves")
WIDTHS = (4, 21, 56, 15, 7, 6, 6)


def killed_runs(folder: Path, kills: int, seed: int, jobs: int) -> list[tuple[Any, ...]]:
    """Print and return a row per kill; the last three cells say whether all was equal."""
    whole = folder / "uninterrupted"
    began = time.monotonic()
    if code := ended(started(folder, whole)):
        raise SystemExit(f"the uninterrupted run failed ({code}), see {whole}.txt")
    seconds, phases = time.monotonic() - began, lengths(trace_of(whole))
    show(HEAD)
    rows = []
    one = functools.partial(row_of, folder, seed, phases, seconds, whole)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        for row in pool.map(one, range(1, kills + 1)):
            rows.append(row)
            show((*row[:-3], *("yes" if same else "NO" for same in row[-3:])))
    return rows


def row_of(
    folder: Path,
    seed: int,
    phases: dict[str, list[float]],
    seconds: float,
    whole: Path,
    number: int,
) -> tuple[Any, ...]:
    """One kill; a run that ended before the signal came does not count as one."""
    aim, draws = AIMS[(number - 1) % len(AIMS)], random.Random(f"{seed} {number}")
    while (row := killed_run(folder, number, aim, draws, phases, seconds, whole)) is None:
        pass
    return row


def show(cells: tuple[Any, ...]) -> None:
    print(
        " | ".join(f"{cell!s:{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()
    )
    sys.stdout.flush()


def killed_run(
    folder: Path,
    number: int,
    aim: str,
    draws: random.Random,
    phases: dict[str, list[float]],
    seconds: float,
    whole: Path,
) -> tuple[Any, ...] | None:
    """Kill one run, start it again until it ends, compare; None: it ended before it was killed."""
    directory = folder / f"kill_{number}"
    if directory.exists():  # of a try that ended too early
        shutil.rmtree(directory)
        Path(f"{directory}.trace").unlink(missing_ok=True)
    if aim == ANY:
        process = started(folder, directory)
        time.sleep(draws.uniform(0, seconds))
        os.killpg(process, signal.SIGKILL)
    else:
        lasting = phases[aim]
        size = (whole / CHECKPOINTS / LAST).stat().st_size
        target = Target(aim, draws.randint(1, len(lasting)), draws.random(), median(lasting), size)
        process = started(folder, directory, target)
    if ended(process) != -signal.SIGKILL:
        return None
    moment = killed_in(directory)
    log = directory / "log.txt"
    before = len(log.read_text()) if log.exists() else 0
    finished = (directory / record.FILE).exists()
    if code := ended(started(folder, directory)):
        raise SystemExit(
            f"kill {number}: the run started again failed ({code}), see {directory}.txt"
        )
    resumed = log.read_text()[before:].partition(" at step ")[2].split("\n")[0]
    resumed = resumed or ("nothing left" if finished else "anew")
    if leftovers := [p.name for p in (directory / CHECKPOINTS).iterdir() if p.name[0] == "."]:
        raise SystemExit(f"kill {number}: {leftovers} were left behind")
    return (
        *(number, aim, moment, resumed),
        *(equal_weights(whole, directory), equal_records(whole, directory)),
        (whole / CURVES).read_bytes() == (directory / CURVES).read_bytes(),
    )


# ---------------------------------------------------------------- a run, and its end


def started(folder: Path, directory: Path, target: "Target | None" = None) -> int:
    """Start the run in a process group of its own; returns the number of both."""
    words = [*OPTIONS, f"data.root={folder / 'data'}", f"run_dir={directory}"]
    process = os.fork()
    if process:
        os.setpgid(process, process)
        return process
    code = 70
    try:
        os.setpgid(0, 0)
        output = os.open(f"{directory}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv[:] = ["train.py", *words]
        trace(Path(f"{directory}.trace"), target)
        cli.set_up_log()
        code = cli.exit_code(cli.train_command, words)
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """Wait for a run; its exit code, or minus the signal that ended it."""
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


@dataclass(frozen=True)
class Target:
    """Where a kill is aimed: a phase, which occurrence of it (from 1), at which share of its length."""

    phase: str
    occurrence: int
    share: float
    seconds: float  # that the phase lasts
    size: int  # of a checkpoint, bytes


def kill() -> None:
    """This run and its workers."""
    os.killpg(0, signal.SIGKILL)


def trace(path: Path, target: Target | None) -> None:
    """Have every phase of this process's run note its beginning and end, and the target struck."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    met: dict[str, int] = {}

    def note(phase: str, what: str) -> None:
        entry = {"phase": phase, "what": what, "number": met[phase], "time": time.monotonic()}
        os.write(file, json.dumps(entry).encode() + b"\n")

    def aimed(phase: str) -> bool:
        return target is not None and target.phase == phase and target.occurrence == met.get(phase)

    def noted(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            met[phase] = met.get(phase, 0) + 1
            note(phase, "begins")
            if target is not None and aimed(phase) and phase != WRITING:
                threading.Timer(target.share * target.seconds, kill).start()
            result = function(*args, **kwargs)
            note(phase, "ends")
            return result

        return wrapper

    def renamed(*args: Any) -> None:
        """Between the two names is no time to wait for: strike there at once."""
        met[NAMING] = met.get(NAMING, 0) + 1
        note(NAMING, "begins")
        if target is not None and aimed(NAMING) and target.share < 0.5:
            kill()
        keep(*args)
        if aimed(NAMING):
            kill()
        note(NAMING, "ends")

    @contextmanager
    def aside(path: Path, kept: Path | None = None) -> Iterator[Any]:
        with write_aside(path, kept) as inner:
            struck = target is not None and path.suffix == ".ckpt" and aimed(WRITING)
            yield Struck(inner, int(target.share * target.size)) if struck and target else inner

    keep, write_aside = record.keep, record.aside
    patched: Any = record
    patched.keep, patched.aside = renamed, aside
    patched.write = noted(RECORD, record.write)
    for owner, name, phase in (
        (DmlModule, "optimizer_step", STEP),
        (DmlModule, "validation_step", VALIDATION),
        (DmlModule, "on_validation_epoch_end", VALIDATION),
        (checkpoint_file, "write", WRITING),
        (run, "final_evaluation", EVALUATION),
    ):
        setattr(owner, name, noted(phase, getattr(owner, name)))


class Struck:
    """A file whose writer is killed when `size` bytes of it are on the disk."""

    def __init__(self, file: Any, size: int):
        self.file, self.left = file, size

    def write(self, content: bytes) -> int:
        """Up to where it ends."""
        piece = memoryview(content).cast("B")
        if len(piece) > self.left:
            self.file.write(piece[: self.left])
            self.file.flush()
            kill()
        self.left -= len(piece)
        return self.file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


# ---------------------------------------------------------------- what was, and what came of it


def trace_of(directory: Path) -> list[dict[str, Any]]:
    """Beginnings and ends of a run's phases, in order; none if it was killed before the first."""
    path = Path(f"{directory}.trace")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lengths(entries: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Phase -> seconds of each of its occurrences."""
    found: dict[str, list[float]] = {}
    began: dict[str, float] = {}
    for entry in entries:
        if entry["what"] == "begins":
            began[entry["phase"]] = entry["time"]
        else:
            found.setdefault(entry["phase"], []).append(entry["time"] - began[entry["phase"]])
    return found


def killed_in(directory: Path) -> str:
    """The phase that had begun and not ended when the run was killed, or what it came after."""
    entries = trace_of(directory)
    open_phases = []
    for entry in entries:
        if entry["what"] == "begins":
            open_phases.append(entry)
        else:
            open_phases.pop()
    steps = sum(entry["phase"] == STEP and entry["what"] == "ends" for entry in entries)
    folder = directory / CHECKPOINTS
    half = list(folder.glob(".*.ckpt.*")) if folder.exists() else []
    aside = f", {half[0].stat().st_size // 1000} kB written" if half else ""
    if open_phases:
        inner = open_phases[-1]
        return f"{inner['phase']} {inner['number']}, after {steps} steps{aside}"
    return f"after {entries[-1]['phase']}, {steps} steps" if entries else "the start"


def equal_weights(one: Path, other: Path) -> bool:
    """Weights, memory, averages and optimizer states of both checkpoints, bit for bit."""
    return all(
        same(first["state_dict"], second["state_dict"])
        and same(first["optimizer_states"], second["optimizer_states"])
        for first, second in (
            [checkpoint_file.read(directory / CHECKPOINTS / name) for directory in (one, other)]
            for name in (LAST, BEST)
        )
    )


def same(one: Any, other: Any) -> bool:
    """Whether nested containers of tensors hold the same bits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def equal_records(one: Path, other: Path) -> bool:
    """Everything that is not of the session."""
    kept = []
    for directory in (one, other):
        content = {k: v for k, v in record.read(directory).items() if k not in OF_THE_SESSION}
        content["config"] = {**content["config"], "run_dir": None}
        kept.append(content)
    return kept[0] == kept[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
