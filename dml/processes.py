"""The processes of one run: which of them this is, and starting those of this machine.  Torch-free.

However they were started, they speak of themselves in torchrun's variables: RANK and WORLD_SIZE over all
machines, LOCAL_RANK and LOCAL_WORLD_SIZE on this one. Slurm's own are read where srun started them.

`trainer.devices=N` on one machine needs no launcher: `start` is it.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from dml.errors import Interrupted, Problem

log = logging.getLogger("dml")

STORE = "DML_STORE"  # the file by which processes that `start` started find each other
TYPED = "DML_TYPED"  # what the user typed, as JSON
GRACE = 20.0  # seconds that the others have to end by themselves once one has failed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # that ask a run to save and stop
SAVED = os.EX_TEMPFAIL  # 75, the exit code of a run that was told to end and loses nothing by it
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Place:
    """One process among those of a run.

    rank: 0..world_size-1 over all machines.  local_rank: 0..local_world_size-1 on this one.
    started_by: "torchrun", "srun", or "" for us.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    started_by: str = ""

    @property
    def nodes(self) -> int:
        """Machines, if all of them have as many processes as this one."""
        return self.world_size // self.local_world_size


def place() -> Place:
    """Which process this is, from its environment; the only one if that says nothing."""
    known = os.environ
    if all(name in known for name in TORCHRUN):
        rank, world, local_rank, local_world = (int(known[name]) for name in TORCHRUN)
        return Place(rank, world, local_rank, local_world, "" if STORE in known else "torchrun")
    # Variables of a step, which srun alone sets: in a batch script itself only one process runs.
    tasks = int(known.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1:
        rank, local_rank = int(known["SLURM_PROCID"]), int(known["SLURM_LOCALID"])
        per_node = known["SLURM_STEP_TASKS_PER_NODE"]  # 8(x2), or 8,4 where they differ
        return Place(rank, tasks, local_rank, int(per_node.split("(")[0].split(",")[0]), "srun")
    return Place()


def level() -> int:
    """From which level on this process speaks to the terminal, until the processes have joined.

    The first says all; the first of another machine what is wrong there; the others, which would say it
    again, nothing.
    """
    here = place()
    if here.rank == 0:
        return logging.NOTSET
    return logging.ERROR if here.local_rank == 0 else logging.CRITICAL + 1


def number_of(devices: object) -> int | None:
    """How many devices `trainer.devices` names; None: as many as there are."""
    if devices == "auto":
        return None
    return len(devices) if isinstance(devices, Sequence) else int(str(devices))


def world_size(config: DictConfig) -> int | None:
    """Processes of the run, or None where only the machine can say (trainer.devices=auto)."""
    here = place()
    if here.started_by or here.world_size > 1:
        return here.world_size
    return number_of(config.trainer.devices)


def problems(config: DictConfig) -> list[Problem]:
    """What contradicts between `trainer.devices` and the processes that were started."""
    here, devices = place(), config.trainer.devices
    number, where = number_of(devices), f"trainer.devices={devices}"
    if not here.started_by:
        return []
    if here.world_size % here.local_world_size:
        what = (
            f"{here.started_by} started {here.world_size} processes, and not equally many on every "
            "machine. Start as many on each."
        )
        return [Problem(where, what)]
    if number is not None and number != here.local_world_size:
        what = (
            f"{here.started_by} started {here.local_world_size} processes on this machine.\n"
            "Add trainer=ddp, which takes as many as were started, or start one alone."
        )
        return [Problem(where, what)]
    return []


def to_start(config: DictConfig) -> int:
    """How many processes of this machine the run still needs started; 0: this one is all, or one of all."""
    here = place()
    if here.world_size > 1:
        # Read when torch is imported. DistributedDataParallel says at length that it looks for unused
        # parameters, and finds none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if here.started_by or here.world_size > 1:
        return 0
    number = number_of(config.trainer.devices)
    if number is None:
        number = 1
        if config.trainer.accelerator != "cpu":
            import torch

            number = torch.cuda.device_count()
    return number if number > 1 else 0


def start(words: list[str], count: int) -> int:
    """Run a command line of dml-train in `count` processes of this machine; returns the exit code.

    That is 0 if all ended well. When one fails, the others have `GRACE` seconds to end, and the code is
    its. SIGINT, SIGTERM and SIGUSR1 are passed on to all of them; if this process is killed they stop as
    on SIGTERM.
    """
    with tempfile.TemporaryDirectory(prefix="dml_") as folder:
        shared = {
            **os.environ,
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads_for(count)),
            STORE: str(Path(folder) / "store"),
            TYPED: json.dumps(sys.argv),
        }
        started: list[subprocess.Popen[bytes]] = []
        with passed_on(started):
            for rank in range(count):
                # Their own session: Ctrl-C reaches us alone, and we pass it on once.
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "dml.worker", *words],
                        env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.PIPE,
                        start_new_session=True,
                    )
                )
            codes = ended(started)
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
    return verdict(codes)


def threads_for(count: int) -> str:
    """An equal share of the cores that are ours."""
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return str(max(1, cores // count))


def ended(started: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Wait for all; rank -> exit code, or minus the signal, of those that ended by themselves."""
    codes: dict[int, int] = {}
    deadline = None
    while len(codes) < len(started):
        for rank, process in enumerate(started):
            if rank not in codes and process.poll() is not None:
                codes[rank] = process.returncode
        if deadline is None and any(codes.values()):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            left = [process for rank, process in enumerate(started) if rank not in codes]
            for process in left:
                process.kill()
            for process in left:
                process.wait()
            break
        time.sleep(0.05)
    return codes


def verdict(codes: dict[int, int]) -> int:
    """The exit code of the whole, after saying of those that could not speak how they ended."""
    killed = {rank: -code for rank, code in codes.items() if code < 0}
    if len(killed) == len(codes) and set(killed.values()) <= set(SIGNALS):
        return 128 + min(killed.values())  # stopped before there was anything to save
    for rank, number in killed.items():
        name = signal.Signals(number).name
        memory = " (out of memory?)" if number == signal.SIGKILL else ""
        log.error("Error: process %d was ended by %s%s; so the run has ended.", rank, name, memory)
    # Of those that failed by themselves the gravest: 2, a wrong configuration, is more than 1.
    failed = [code for code in codes.values() if code > 0 and code != SAVED]
    if not failed and codes.get(0) == SAVED:  # it is the first that saves
        return SAVED
    return max(failed, default=1 if killed or SAVED in codes.values() else 0)


def stopped_by(number: int, saved: bool) -> int:
    """The exit code of what a signal stopped.  saved: the same command goes on where it was.

    A system that took the machine away is told to start the command again; a person at the keyboard is not.
    """
    return SAVED if saved and number != signal.SIGINT else 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Within this block, where nothing is trained, a signal raises Interrupted at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone have handlers
        return

    def stop(number: int, frame: object) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int = 0) -> None:
    """Leave signals to the process that trains: for a worker that reads its images.

    Slurm and a terminal's Ctrl-C reach every process of a run; a worker that ended on it would take the
    run along before it has saved. SIGTERM from the process that trains still ends it.
    """
    del worker
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent it
        return
    parent = os.getppid()

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=listen, daemon=True).start()


@contextmanager
def passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Within this block these signals go to all processes, and do nothing to us."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone have handlers
        return

    def forward(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
