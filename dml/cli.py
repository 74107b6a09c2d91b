"""The commands: compose, check, and only then import the rest.

Nothing above the call of `run` imports torch: a wrong command line is reported within a second.
"""

import logging
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from dml.config import check, compose
from dml.config.compose import Composed
from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, Problem, RunError

log = logging.getLogger("dml")

FAILED, WRONG_CONFIGURATION = 1, 2
HYDRA_FLAGS = (
    "--help",
    "-h",
    "--hydra-help",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
)


def train() -> None:
    """``dml-train``: train one run, or with -m every combination of options, one after another."""
    exit_with(train_command)


def evaluate() -> None:
    """``dml-eval``: evaluate runs, timm models and saved embeddings; compare two runs."""
    from dml import eval_command

    exit_with(eval_command.run)


def data() -> None:
    """``dml-data``: fetch, check and look at data sets."""
    from dml import data_command

    exit_with(data_command.run)


def report() -> None:
    """``dml-report``: keep records as evidence, make tables and pages of them."""
    from dml.report import command

    exit_with(command.run)


def export() -> None:
    """``dml-export``: a finished run as a bundle that `dml.load_encoder` opens."""
    from dml.export import command

    exit_with(command.run)


def index() -> None:
    """``dml-index``: embed a folder of images and make it searchable."""
    from dml.index import command

    exit_with(command.run)


def search() -> None:
    """``dml-search``: the nearest images of an index, in the terminal, as a page or as a service."""
    from dml.index import search_command

    exit_with(search_command.run)


def exit_with(command: Callable[[list[str]], int]) -> None:
    """Run a command; turn the errors that users can meet into messages and exit codes."""
    set_up_log()
    try:
        code = command(sys.argv[1:])
    except ConfigurationError as error:
        log.error("%s", error)
        code = WRONG_CONFIGURATION
    except RunError as error:
        log.error("Error: %s", error)
        code = FAILED
    except KeyboardInterrupt:
        log.error("Stopped.")
        code = 130
    sys.exit(code)


def train_command(words: list[str]) -> int:
    """Train as the words say; returns the exit code."""
    if any(word in HYDRA_FLAGS or word.startswith("--cfg=") for word in words):
        from hydra import main

        compose.register()
        sys.argv[1:] = compose.hydra_words(words)
        main(version_base="1.3", config_path=str(compose.config_dir()), config_name="train")(
            print
        )()
        return 0
    if "-m" in words or "--multirun" in words:
        return sweep([word for word in words if word not in ("-m", "--multirun")])
    composed, index = checked(words)
    if composed.config.dry_run:
        from dml import tables

        tables.choices(composed)
        log.info("%s", tables.data(index))
        log.info("Nothing is wrong with it. dry_run=true: nothing was trained.")
        return 0
    return train_one(composed, index)


def checked(words: list[str]) -> tuple[Composed, ImageIndex]:
    """Compose and check a command line.  Raises ConfigurationError with all that is wrong."""
    flags = [word for word in words if word.startswith("-")]
    unknown = [
        Problem(flag, "is no flag. Options are written key=value; see --help.") for flag in flags
    ]
    composed, problems = compose.compose_all([word for word in words if word not in flags])
    return composed, check.check(composed, unknown + problems)


def train_one(composed: Composed, index: ImageIndex) -> int:
    """Train one run; say how to resume if it is stopped."""
    from dml import record, run
    from dml.callbacks import Interrupted

    try:
        run.train(composed, index)
    except Interrupted as stopped:
        directory = composed.config.run_dir
        kept = [w for w in composed.overrides if w.split("=")[0] not in ("run_dir", "ckpt_path")]
        again = [*kept, compose.word("run_dir", directory), "ckpt_path=last"]
        command = f"{record.program()} {shlex.join(again)}"
        log.info("Stopped. Saved %s. Resume with\n  %s", stopped.checkpoint, command)
        return 128 + stopped.signal_number
    return 0


def sweep(words: list[str]) -> int:
    """Run every combination of the listed values; all are checked before the first starts."""
    jobs, varied = compose.expand(words)
    problems: list[Problem] = []
    for job in jobs:
        try:
            checked(job)
        except ConfigurationError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigurationError(problems)
    base = next((w.split("=", 1)[1] for w in words if w.startswith("run_dir=")), None)
    base = base or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}_sweep"
    from dml import record, run, tables
    from dml.callbacks import Interrupted

    results: list[tuple[str, dict[str, Any] | None]] = []
    for number, job in enumerate(jobs, 1):
        name = ",".join(word for word in job if word.split("=")[0].lstrip("+") in varied) or "job"
        directory = Path(base) / name.replace("/", "_")
        if (directory / record.FILE).exists():
            log.info("Job %d of %d: %s is finished already.", number, len(jobs), name)
            results.append((name, record.read(directory)))
            continue
        log.info("Job %d of %d: %s", number, len(jobs), name)
        job = [word for word in job if not word.startswith("run_dir=")] + [
            compose.word("run_dir", directory)
        ]
        if (directory / "checkpoints" / "last.ckpt").exists():
            job.append("ckpt_path=last")
        try:
            results.append((name, run.train(*checked(job))))
        except Interrupted:
            log.info("Stopped. The same command with run_dir=%s goes on with this sweep.", base)
            return 130
        except (ConfigurationError, RunError) as error:
            log.error("Job %d failed: %s", number, error)
            results.append((name, None))
    tables.sweep(results)
    return FAILED if any(result is None for _, result in results) else 0


class Terminal(logging.StreamHandler):
    """Log to stderr what is not marked as quiet (shown otherwise, by a table or a progress bar)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See the class."""
        return not getattr(record, "quiet", False)


def set_up_log() -> None:
    """Messages as they are, on the terminal; a run adds its log file."""
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        handler = Terminal(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


if __name__ == "__main__":
    train()
