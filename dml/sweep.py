"""`dml-train -m`: every combination of the listed values, each a run in a directory of its own.

All are checked before the first begins. The same command goes on with what it began: finished jobs are
kept, broken ones resumed from their checkpoint. Torch-free: the jobs are other processes.
"""

import csv
import fcntl
import hashlib
import io
import logging
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from dml import build, cli, record, tables
from dml.config import check, compose
from dml.config.compose import Composed
from dml.errors import ConfigurationError, Problem, RunError
from dml.launchers import OUTPUT, Job, Launch, Local, Processes, exit_text
from dml.log_file import FILE as LOG_FILE
from dml.log_file import log_to
from dml.processes import SIGNALS, stopped_by
from dml.run_directory import resumable

log = logging.getLogger("dml")

FILE = "sweep.json"
TABLE = "sweep.csv"
SEED = "seed"  # the option over which means are taken
LONGEST_NAME = 120  # bytes of a job's directory; file systems allow 255
SPACE = "search.space."


@dataclass
class Request:
    """A command line taken apart.

    words: those of the runs.  options: launcher and search.  space: the words `search.space.X=...`.
    typed: all of them that decide what is run, by which its directory is found again.
    """

    words: list[str]
    options: DictConfig
    space: list[str]
    searching: str | None
    typed: list[str] = field(default_factory=list)


def run(words: list[str], launch: Launch | None = None) -> int:
    """Do all runs of a command line, or its search; returns the exit code.

    launch: who starts the jobs, in place of the launcher that the words name.

    Raises ConfigurationError before anything is written, RunError where the directory is in use.
    """
    request = parsed(words)
    if launch is None:
        launch = build.build(request.options.launcher)
    assert launch is not None
    if request.searching is not None:
        from dml import search

        return search.run(request, launch)
    return sweep(request, launch)


def parsed(words: list[str]) -> Request:
    """Take a command line apart and check what is around the runs.  Raises ConfigurationError."""
    multirun = any(word in cli.SEVERAL for word in words)
    words = [word for word in words if word not in cli.SEVERAL]
    space = [word for word in words if word.startswith(SPACE)]
    outer = [word for word in words if compose.around(word) and word not in space]
    rest = [word for word in words if not compose.around(word)]
    composed, problems = compose.compose_all(outer, "sweep")
    searching = next((word for word in words if compose.around(word) == "search"), None)
    if searching and multirun:
        problems.append(Problem("-m", f"and {searching} exclude each other. Drop one of them."))
    if not searching and not multirun:
        problems.append(
            Problem(outer[0], "starts the runs of -m or of a search. Add -m, or drop it.")
        )
    problems += check.node_problems(composed.config, "launcher")
    problems += missing(composed, "launcher")
    if searching:
        problems += check.node_problems(composed.config, "search") + missing(composed, "search")
    if problems:
        raise ConfigurationError(problems)
    deciding_nothing = ("launcher", "search.trials")  # a search may be made longer
    kept = [word for word in words if not word.startswith(deciding_nothing)]
    return Request(rest, composed.config, space, searching, kept)


def missing(composed: Composed, group: str) -> list[Problem]:
    """A package that the group's choice needs and that is not installed."""
    schema = build.schema_of(composed.config, group)
    if schema.package is None or find_spec(schema.package) is not None:
        return []
    what = f"needs {schema.package}, which is not installed.\npip install 'dml[{schema.extra}]'"
    return [Problem(check.words(composed, group), what)]


def sweep(request: Request, launch: Launch) -> int:
    """Run every combination; returns the exit code."""
    combinations, varied = compose.expand(request.words)
    directory = directory_for(request, varied, "sweep")
    jobs = jobs_of(combinations, varied, directory)
    first = checked(jobs)
    if first.config.dry_run:
        for job in jobs:
            log.info("%s", job.name)
        log.info("Nothing is wrong with these %d jobs. dry_run=true: none was run.", len(jobs))
        return 0
    directory.mkdir(parents=True, exist_ok=True)
    with alone(directory):
        log_to(directory)
        write_plan(request, directory, jobs, varied)
        waiting = [job for job in jobs if not finished(job)]
        log.info(
            "%d job%s in %s%s. The same command goes on with them; run_dir=NEW begins afresh.",
            len(jobs),
            "" if len(jobs) == 1 else "s",
            directory,
            f", {len(jobs) - len(waiting)} of them finished" if len(waiting) < len(jobs) else "",
        )
        processes = Processes()
        with stopping(processes):
            quiet = not isinstance(launch, Local)
            for job, code in launch(told(waiting, processes, len(jobs)), processes, directory):
                if processes.stopped is None:
                    say_how_it_ended(job, code, quiet)
        if processes.stopped is not None:
            log.info("Stopped. The same command goes on.")
            return stopped_by(processes.stopped, saved=True)
        return conclude(directory, jobs, varied)


def jobs_of(combinations: list[list[str]], varied: list[str], directory: Path) -> list[Job]:
    """A job for each combination.  Raises ConfigurationError: options that no single job can have."""
    problems = []
    for key in ("run_dir", "ckpt_path"):
        if key in varied:
            problems.append(Problem(key, "cannot vary: each job has its own directory."))
    for word in combinations[0]:
        if word.startswith("ckpt_path=") and "ckpt_path" not in varied:
            problems.append(Problem(word, "a sweep finds the checkpoints of its jobs. Drop it."))
    names = [name_of(words, varied) for words in combinations]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [Problem(name, "is named twice.") for name in twice]
    if problems:
        raise ConfigurationError(problems)
    return [
        make_job(name, directory / name, words)
        for name, words in zip(names, combinations, strict=True)
    ]


def make_job(
    name: str, directory: Path, words: list[str], trial: dict[str, Any] | None = None
) -> Job:
    """A job with its run_dir among the words, started from here."""
    kept = [word for word in words if not word.startswith("run_dir=")]
    if grouped(kept):
        kept.append(compose.word("logger.group", directory.parent.name))
    return Job(
        name=name,
        directory=str(directory.expanduser().absolute()),
        words=[*kept, compose.word("run_dir", directory)],
        program=sys.argv[0],
        cwd=str(Path.cwd()),
        trial=trial,
    )


def grouped(words: list[str]) -> bool:
    """Whether W&B is to group these runs, and no word says how."""
    return "logger=wandb" in words and not any(word.startswith("logger.group=") for word in words)


def name_of(words: list[str], varied: list[str]) -> str:
    """`loss=circle,seed=0`: the words that vary, as the name of a directory."""
    typed = ",".join(word for word in words if key_of(word) in varied) or "job"
    name = re.sub(r"[^\w.,=+@-]", "_", typed)
    if len(name.encode()) <= LONGEST_NAME and name == typed:
        return name
    short = name.encode()[:LONGEST_NAME].decode(errors="ignore")
    return f"{short}_{digest([typed])}"


def key_of(word: str) -> str:
    """The option that a word sets."""
    return word.split("=", 1)[0].lstrip("+")


def digest(words: Iterable[str]) -> str:
    """Eight hexadecimal digits that stand for some words, whatever their order."""
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:8]


def directory_for(request: Request, varied: Sequence[str], kind: str) -> Path:
    """What `run_dir` says, or a name made of the words: the same command finds it again."""
    overrides, _ = compose.parse([w for w in request.words if w.startswith("run_dir=")])
    for override in overrides:
        if override.value() is not None and not override.is_sweep_override():
            return Path(str(override.value())).expanduser()
    leaves = "_".join(key.rpartition(".")[2] for key in varied)[:60]
    return Path("runs") / "_".join(filter(None, [kind, leaves, digest(request.typed)]))


def checked(jobs: list[Job]) -> Composed:
    """Check every job, and what its directory holds; returns the first.

    Raises ConfigurationError with all that is wrong.
    """
    problems: list[Problem] = []
    composed = None
    for job in jobs:
        try:
            found, _ = cli.checked([w for w in job.words if not w.startswith("run_dir=")])
        except ConfigurationError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        composed = composed or found
        problems += check.changed_options(found, Path(job.directory))
    if problems or composed is None:
        raise ConfigurationError(problems)
    return composed


def finished(job: Job) -> bool:
    """Whether a job has a record.  Raises RunError: one that is no record."""
    directory = Path(job.directory)
    if not (directory / record.FILE).exists():
        return False
    record.read(directory)
    return True


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Be the only process that runs this sweep.  Raises RunError if another does."""
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another process is running the jobs of {directory}.") from error
        yield


def write_plan(request: Request, directory: Path, jobs: list[Job], varied: list[str]) -> None:
    """sweep.json: what was typed, what varies, and where each job is."""
    plan = {
        "format": 1,
        "program": record.program(),
        "words": request.typed,
        "varied": varied,
        "jobs": [
            {"name": j.name, "directory": Path(j.directory).name, "words": j.words} for j in jobs
        ],
    }
    record.write_json(plan, directory / FILE)


@contextmanager
def stopping(processes: Processes) -> Iterator[None]:
    """Pass Ctrl-C, SIGTERM and SIGUSR1 on to the jobs, which save a checkpoint; no further job begins."""

    def receive(number: int, frame: FrameType | None) -> None:
        log.info("Stopping; Ctrl-C (once more) stops at once.")
        processes.stop(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def told(jobs: Sequence[Job], processes: Processes, total: int) -> Iterator[Job]:
    """The jobs, each announced as it begins."""
    for number, job in enumerate(jobs, total - len(jobs) + 1):
        if processes.stopped is not None:
            return
        resumed = bool(resumable(Path(job.directory)))
        log.info("\nJob %d of %d%s: %s", number, total, ", resumed" if resumed else "", job.name)
        yield job


def say_how_it_ended(job: Job, code: int, quiet: bool) -> None:
    """One line, in the job's own log, too, where it could not write it itself."""
    directory = Path(job.directory)
    if finished(job):
        if quiet:
            metrics = record.read(directory)["metrics"]["test"]
            name, value = next(iter(metrics.items()))
            log.info("%s: finished, %s %.4f", job.name, name, value)
        return
    told_in = LOG_FILE if (directory / LOG_FILE).exists() else OUTPUT
    log.error("%s: failed (%s), see %s", job.name, exit_text(code), directory / told_in)
    if code < 0:
        with (directory / LOG_FILE).open("a") as file:
            file.write(f"The process of this job was {exit_text(code)}.\n")


def conclude(directory: Path, jobs: list[Job], varied: list[str]) -> int:
    """Table, sweep.csv and report page of the jobs; returns the exit code."""
    rows = [row(job, varied) for job in jobs]
    write_csv(rows, directory / TABLE)
    tables.sweep(rows, [key for key in varied if key != SEED])
    from dml.report import sweep_page

    page = sweep_page.write(directory, None)
    log.info("Each job: %s   Page: %s", directory / TABLE, page)
    return cli.FAILED if any(r["status"] != "finished" for r in rows) else 0


def row(job: Job, varied: Sequence[str]) -> dict[str, Any]:
    """A job as a line of sweep.csv: what varied, how it ended, all metrics."""
    typed = {key_of(word): word.split("=", 1)[1] for word in job.words}
    found: dict[str, Any] = {"job": job.name, **{key: typed[key] for key in varied}}
    if not finished(job):
        return {**found, "status": "failed", "directory": Path(job.directory).name}
    result = record.read(Path(job.directory))
    found |= {"status": "finished", "directory": Path(job.directory).name}
    found["minutes"] = round(result["seconds"]["total"] / 60, 2)
    for which in ("test", "val", "untrained", "frozen"):
        for name, value in (result["metrics"][which] or {}).items():
            found[f"{which}/{name}"] = value
    return found


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows of any columns, written aside and renamed."""
    columns = list(dict.fromkeys(key for line in rows for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with record.aside(path) as file:
        file.write(text.getvalue().encode())
