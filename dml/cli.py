"""The commands: compose, check, and only then import the rest.

Nothing above the call of `run` imports torch: a wrong command line is reported within a second.
"""

import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from dml.config import check, compose
from dml.config.compose import Composed
from dml.data.index import SPLITS, ImageIndex
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
EVAL_HELP = """Evaluate the encoder of a finished run again.

  dml-eval run=DIR                               its own test classes
  dml-eval run=DIR data=folder data.root=OTHER   other data, its test split
  dml-eval run=DIR split=val evaluation.metrics=[recall@1,map@r]

Options: run=DIR, split=train|val|test|all, data=..., data.*, evaluation.*, loader.*
"""


def train() -> None:
    """``dml-train``: train one run, or with -m every combination of options, one after another."""
    exit_with(train_command)


def evaluate() -> None:
    """``dml-eval``: evaluate a finished run again, on its own or other data."""
    exit_with(evaluate_command)


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


def evaluate_command(words: list[str]) -> int:
    """Evaluate as the words say; returns the exit code."""
    if not words or any(word in ("--help", "-h") for word in words):
        print(EVAL_HELP)
        return 0 if words else WRONG_CONFIGURATION
    own, rest = {"run": "", "split": "test"}, []
    for word in words:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        else:
            rest.append(word)
    composed, problems = eval_composed(own["run"], own["split"], rest)
    if problems:
        raise ConfigurationError(problems)
    index = check.check_data(composed)
    if own["split"] == "all":
        index = dataclasses.replace(index, splits={"all": np.arange(len(index.labels))})
    if len(index.part(own["split"])) == 0:
        raise ConfigurationError(
            [Problem(f"split={own['split']}", "this data has no such images.")]
        )

    from dml import record, run, tables

    directory = Path(own["run"]).expanduser()
    result = run.evaluate_run(directory, index, own["split"], composed.config)
    tables.evaluation(result)
    path = record.write_json(result, directory / f"evaluation_{index.name}_{own['split']}.json")
    log.info("Written: %s", path)
    return 0


def eval_composed(run: str, split: str, words: list[str]) -> tuple[Composed, list[Problem]]:
    """What dml-eval is to evaluate on: the run's own data options, changed by the words."""
    from dml import record

    problems = []
    allowed = ("data", "evaluation", "loader")
    for word in words:
        if word.lstrip("+").split("=")[0].split(".")[0] not in allowed:
            problems.append(
                Problem(word, f"is no option of dml-eval. Options: {', '.join(allowed)}.")
            )
    splits = (*SPLITS, "all")
    if split not in splits:
        problems.append(Problem(f"split={split}", f"must be one of {', '.join(splits)}."))
    if not run:
        problems.append(Problem("run", "which run? Add run=DIR, the directory of a finished run."))
    elif not (Path(run).expanduser() / record.FILE).is_file():
        problems.append(Problem(f"run={run}", f"holds no {record.FILE}: it is no finished run."))
    if problems:
        raise ConfigurationError(problems)
    before = record.read(Path(run).expanduser())["overrides"]
    own_data = any(word.startswith("data=") for word in words)
    kept = [
        word
        for word in before
        if word.split("=")[0].split(".")[0] in allowed
        and not (own_data and word.startswith("data"))
    ]
    return compose.compose_all([*kept, *words])


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
