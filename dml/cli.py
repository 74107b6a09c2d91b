"""The commands: compose, check, and only then import the rest.

Nothing above the call of `run` imports torch: a wrong command line is reported within a second.
"""

import logging
import shlex
import sys
from collections.abc import Callable

from dml import processes
from dml.config import check, compose
from dml.config.compose import Composed
from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, Problem, RunError

log = logging.getLogger("dml")

FAILED, WRONG_CONFIGURATION = 1, 2
SEVERAL = ("-m", "--multirun")  # several runs
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
    sys.exit(exit_code(command, sys.argv[1:]))


def exit_code(command: Callable[[list[str]], int], words: list[str]) -> int:
    """What a command returns, or what its error means, which goes to the log."""
    try:
        return command(words)
    except ConfigurationError as error:
        log.error("%s", error)
        return WRONG_CONFIGURATION
    except RunError as error:
        log.error("Error: %s", error)
        return FAILED
    except Exception:  # no user's mistake; said here so that the run's log has it, too
        log.exception("Error, not foreseen:")
        return FAILED
    except KeyboardInterrupt:
        log.error("Stopped.")
        return 130


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
    if any(word in SEVERAL or compose.around(word) for word in words):
        from dml import sweep

        return sweep.run(words)
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
    """Train one run, in as many processes as it asks for; say how to resume if it is stopped."""
    if count := processes.to_start(composed.config):
        return processes.start(composed.overrides, count)
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
        handler.setLevel(processes.level())
        log.addHandler(handler)


if __name__ == "__main__":
    train()
