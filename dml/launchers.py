"""Who starts the jobs of a sweep or search.  Torch-free.

A job is a process of its own whoever starts it: nothing of one job - random state, memory, a poisoned GPU
context - reaches the next, and a job that the system kills takes no other along. What came out is read from
the files in its directory, wherever it ran.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from dml import record
from dml.errors import RunError
from dml.processes import SAVED, SIGNALS

OUTPUT = "output.txt"  # what a job printed, where several write at once
STOPPED = -1  # the exit code of a job that was not begun
INTERRUPTED = (SAVED, *(128 + number for number in SIGNALS))


@dataclass(frozen=True)
class Job:
    """One run.

    name: of the job within its sweep.  directory: where it is written.  words: its command line, run_dir
    included.  program: what the user typed before the words.  cwd: where.  trial: study file and number of
    an Optuna trial, whose test classes stay closed.
    """

    name: str
    directory: str
    words: list[str]
    program: str
    cwd: str
    trial: dict[str, Any] | None = None

    def command(self) -> list[str]:
        """The process: dml/job.py."""
        return [sys.executable, "-m", "dml.job", json.dumps(asdict(self))]


class Processes:
    """Jobs as processes; `stop` lets each save a checkpoint and end, and begins no other."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped: int | None = None

    def run(
        self, job: Job, shown: bool = False, environment: Mapping[str, str] | None = None
    ) -> int:
        """Run a job to its end; returns its exit code, STOPPED if it was not begun.

        shown: it writes to our terminal; else to output.txt in its directory.  environment: variables
        besides ours.
        """
        if self.stopped is not None:
            return STOPPED
        directory = Path(job.directory)
        directory.mkdir(parents=True, exist_ok=True)
        output = None if shown else (directory / OUTPUT).open("ab")
        try:
            # Its own session: Ctrl-C reaches us alone, and we pass it on once. Its input: see dml/job.py.
            process = subprocess.Popen(
                job.command(),
                cwd=job.cwd,
                env={**os.environ, **import_path(), **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            self.running.add(process)
            try:
                if self.stopped is not None:  # a signal came while it was being started
                    process.terminate()
                return process.wait()
            finally:
                self.running.discard(process)
                assert process.stdin is not None
                process.stdin.close()
        finally:
            if output is not None:
                output.close()

    def stop(self, number: int) -> None:
        """Ask every job to save a checkpoint and end; asked again by Ctrl-C, to end at once."""
        again = self.stopped is not None and number == signal.SIGINT
        self.stopped = number
        for process in list(self.running):
            process.send_signal(signal.SIGINT if again else signal.SIGTERM)


Started = Iterator[
    tuple[Job, int]
]  # jobs that ended, in the order in which they did, and exit codes
Launch = Callable[[Iterable[Job], Processes, Path], Started]


class Local:
    """One job after another, on this terminal."""

    def __call__(self, jobs: Iterable[Job], processes: Processes, folder: Path) -> Started:
        """Run the jobs; asks for the next when the one before has ended."""
        for job in jobs:
            yield job, processes.run(job, shown=True)


@dataclass
class Joblib:
    """`n_jobs` at a time on this machine (-1: as many as cores), the cores divided among them.

    devices: GPUs, each for one job at a time.
    """

    n_jobs: int
    devices: list[int] = field(default_factory=list)

    def at_once(self) -> int:
        """How many jobs run at a time."""
        import joblib

        wanted = joblib.cpu_count() if self.n_jobs == -1 else self.n_jobs
        return min(wanted, len(self.devices)) if self.devices else wanted

    def __call__(self, jobs: Iterable[Job], processes: Processes, folder: Path) -> Started:
        """Run the jobs; asks for the next when one has ended."""
        import joblib

        at_once, free = self.at_once(), queue.SimpleQueue[int]()
        for device in self.devices:
            free.put(device)
        threads = str(max(1, joblib.cpu_count() // at_once))

        def run(job: Job) -> tuple[Job, int]:
            environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
            if not self.devices:
                return job, processes.run(job, environment=environment)
            device = free.get()
            try:
                own = environment | {"CUDA_VISIBLE_DEVICES": str(device)}
                return job, processes.run(job, environment=own)
            finally:
                free.put(device)

        # Threads, each of which waits for the process of its job.
        parallel = joblib.Parallel(
            at_once, backend="threading", pre_dispatch="n_jobs", return_as="generator_unordered"
        )
        yield from cast(Started, parallel(joblib.delayed(run)(job) for job in jobs))


class Remote:
    """A job on another machine: what submitit pickles and calls there."""

    def __call__(self, job: Job) -> int:
        """Run the job; returns its exit code."""
        self.processes = Processes()
        code = self.processes.run(job)
        if code in INTERRUPTED and self.processes.stopped is None:
            # Slurm told all processes to end, and tells submitit (SIGUSR2) before or after: give it time
            # to call `checkpoint`, which puts the job back into the queue.
            time.sleep(30)
        return code

    def checkpoint(self, job: Job) -> Any:
        """Called by submitit when the time is up or the job is preempted: save, and queue it again."""
        import submitit

        self.processes.stop(signal.SIGTERM)
        for process in list(self.processes.running):
            # `process.wait` is what this signal interrupted, and its lock is held.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Remote(), job)


@dataclass
class Submitit:
    """A cluster through submitit.  The fields are the options of configs/launcher/submitit.yaml."""

    cluster: str
    timeout_min: int
    max_num_timeout: int
    n_jobs: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    additional: dict[str, Any] = field(default_factory=dict)

    def executor(self, folder: Path) -> Any:
        """Submitit's executor, whose files and logs lie in folder/submitit."""
        import submitit

        timeouts = {f"{self.cluster}_max_num_timeout": self.max_num_timeout}
        more = {} if self.cluster == "debug" else timeouts
        executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster, **more)
        general = {
            name: getattr(self, name)
            for name in ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")
        }
        special = {
            f"slurm_{name}": getattr(self, name)
            for name in ("partition", "account", "qos", "constraint")
        }
        given = {k: v for k, v in {**general, **special}.items() if v is not None}
        if self.additional:
            given["slurm_additional_parameters"] = self.additional
        executor.update_parameters(name=f"dml_{folder.name}", **given)
        return executor

    def __call__(self, jobs: Iterable[Job], processes: Processes, folder: Path) -> Started:
        """Submit the jobs, `n_jobs` in the queue at a time, and wait for them.

        Stopped, it ends the jobs of this machine and leaves those of Slurm in the queue: the same sweep
        finds them there.
        """
        os.environ.update(import_path())  # sbatch hands our environment on
        executor, waiting = self.executor(folder), iter(jobs)
        submitted = Submitted(folder / "submitit" / "jobs.json")
        running: list[tuple[Job, Any]] = []
        while True:
            while self.n_jobs is None or len(running) < self.n_jobs:
                job = None if processes.stopped is not None else next(waiting, None)
                if job is None:
                    break
                handle = submitted.still_running(job, executor) if self.cluster == "slurm" else None
                if handle is None:
                    handle = executor.submit(Remote(), job)
                    submitted.remember(job, handle.job_id)
                running.append((job, handle))
            if processes.stopped is not None:
                yield from self.left(running)
                return
            if not running:
                return
            ended = [(job, handle) for job, handle in running if handle.done()]
            for job, handle in ended:
                running.remove((job, handle))
                yield job, exit_code(job, handle)
            if not ended:
                time.sleep(0.2 if self.cluster != "slurm" else 5)

    def left(self, running: list[tuple[Job, Any]]) -> Started:
        """What becomes of jobs in the queue when the sweep is stopped."""
        for job, handle in running:
            if self.cluster != "slurm":
                handle.cancel()
            yield job, STOPPED


class Submitted:
    """Which job of the queue runs what, kept in a file: a sweep that is started again submits none twice."""

    def __init__(self, path: Path):
        self.path = path
        self.ids: dict[str, str] = record.read_json(path) if path.exists() else {}

    def remember(self, job: Job, job_id: str) -> None:
        """Write the job's number down."""
        self.ids[job.name] = job_id
        record.write_json(self.ids, self.path)

    def still_running(self, job: Job, executor: Any) -> Any:
        """The job in the queue, or None where it is not, or not any more."""
        if job.name not in self.ids:
            return None
        import submitit

        handle = submitit.SlurmJob(executor.folder, self.ids[job.name])
        return None if handle.done() or handle.state == "UNKNOWN" else handle


def exit_code(job: Job, handle: Any) -> int:
    """What a job of submitit returned; 1, with submitit's words in output.txt, if it did not."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return handle.result()
    except (FailedJobError, UncompletedJobError) as error:
        return lost(job, error)


def lost(job: Job, error: Exception) -> int:
    """Put into output.txt why a job told no exit code; returns the one that stands for it."""
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / OUTPUT).open("a") as file:
        file.write(f"{error}\n")
    return 1


@dataclass
class Ray:
    """Tasks of a Ray cluster.  The fields are the options of configs/launcher/ray.yaml."""

    address: str | None
    n_jobs: int | None
    cpus_per_job: int
    gpus_per_job: float

    def __call__(self, jobs: Iterable[Job], processes: Processes, folder: Path) -> Started:
        """Start the jobs, `n_jobs` at a time, and wait for them.  Raises RunError: no cluster there."""
        import ray

        environment = {"env_vars": import_path()}
        try:
            ray.init(
                self.address, runtime_env=environment, include_dashboard=False, log_to_driver=False
            )
        except ConnectionError as error:
            raise RunError(f"launcher.address={self.address}: {error}") from error
        try:
            yield from self.tasks(ray, jobs, processes)
        finally:
            ray.shutdown()

    def tasks(self, ray: Any, jobs: Iterable[Job], processes: Processes) -> Started:
        """The jobs as Ray tasks."""
        needs = {"num_cpus": self.cpus_per_job, "num_gpus": self.gpus_per_job, "max_retries": 0}
        start, waiting, running = ray.remote(**needs)(run_as_task), iter(jobs), {}
        while True:
            while self.n_jobs is None or len(running) < self.n_jobs:
                job = None if processes.stopped is not None else next(waiting, None)
                if job is None:
                    break
                running[start.remote(job)] = job
            if processes.stopped is not None:
                for task in running:
                    ray.cancel(task)
                ray.wait(list(running), num_returns=len(running), timeout=60)
                yield from ((job, STOPPED) for job in running.values())
                return
            if not running:
                return
            for task in ray.wait(list(running), timeout=0.5)[0]:
                job = running.pop(task)
                try:
                    yield job, ray.get(task)
                except (
                    ray.exceptions.RayError
                ) as error:  # the node was lost, or the task was killed
                    yield job, lost(job, error)


def run_as_task(job: Job) -> int:
    """Run a job in a worker of Ray, which is told to stop by a KeyboardInterrupt."""
    processes = Processes()
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(processes.run(job)))
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except KeyboardInterrupt:
        processes.stop(signal.SIGINT)
        thread.join()
    return done[0]


def import_path() -> dict[str, str]:
    """PYTHONPATH with which another process finds this package, installed or not."""
    package = str(Path(__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": package if not before else f"{package}{os.pathsep}{before}"}


def exit_text(code: int) -> str:
    """What an exit code means, in words."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", perhaps for want of memory" if code == -9 else "")
    if code == SAVED:
        return "told to stop; it has saved a checkpoint"
    return f"exit code {code}"
