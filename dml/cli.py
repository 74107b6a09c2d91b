"""The commands: compose, check, and only then import the rest.

Nothing above the call of `run` imports torch: a wrong command line is reported within a second.
"""

import logging
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from dml import processes, record
from dml.config import check, compose
from dml.config.compose import Composed
from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, Interrupted, NoneWhole, Problem, RunError
from dml.run_directory import locked, resumable

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
    code = exit_code(command, sys.argv[1:])
    if code == processes.SAVED:
        # Whatever ends the others when the first of several has ended: it is to be this code.
        for number in processes.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def exit_code(command: Callable[[list[str]], int], words: list[str]) -> int:
    """What a command returns, or what its error means, which goes to the log."""
    try:
        if problems := homeless(words):
            raise ConfigurationError(problems)
        return command(words)
    except ConfigurationError as error:
        log.error("%s", error)
        return WRONG_CONFIGURATION
    except RunError as error:
        log.error("Error: %s", error)
        return FAILED
    except OSError as error:  # a place that cannot be read or written; the log has where it was met
        place = "" if error.filename is None else f"{error.filename!s:.200}: "
        log.error("Error: %s%s.", place, error.strerror or error)
        log.info("%s", traceback.format_exc(), extra={"quiet": True})
        return FAILED
    except Exception:  # no user's mistake; said here so that the run's log has it, too
        log.exception("Error, not foreseen:")
        return FAILED
    except Interrupted as stopped:
        log.error("Stopped.")
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        log.error("Stopped.")
        return 130


def homeless(words: list[str]) -> list[Problem]:
    """Values such as ~nobody/x: the home directory of a user whom this machine does not know."""
    found = []
    for word in words:
        try:
            Path(word.partition("=")[2]).expanduser()
        except RuntimeError:
            found.append(Problem(word, "names the home directory of a user who is not known here."))
    return found


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
    return train_alone(composed, index)


def train_alone(composed: Composed, index: ImageIndex) -> int:
    """Train one run, in a directory that no other process is writing into."""
    directory = composed.config.run_dir
    if (
        directory is None or processes.place().rank > 0
    ):  # its name is new; the first process sees to it
        return train_one(composed, index)
    with locked(Path(directory).expanduser()):
        if found := check.run_dir_problems(composed):  # which another process may have caused since
            raise ConfigurationError(found)
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
    if check.is_finished(composed.config):
        directory = Path(composed.config.run_dir).expanduser()
        record.read(directory)
        log.info("%s holds a finished run: nothing is left to do.", directory)
        return 0
    if count := processes.to_start(composed.config):
        return processes.start(composed.overrides, count)
    try:
        with processes.stoppable():
            from dml import run

            run.train(composed, index)
    except Interrupted as stopped:
        return say_stopped(composed, stopped)
    except NoneWhole:
        raise
    except RunError as error:
        if (checkpoint := last_checkpoint(composed)) is None:
            raise
        what = f"{error}\nKept: {checkpoint}. Resume with\n  {resuming(composed)}"
        raise RunError(what) from error
    return 0


def say_stopped(composed: Composed, stopped: Interrupted) -> int:
    """Tell what was saved of a run that a signal stopped, and how to go on; returns its exit code."""
    checkpoint = stopped.checkpoint or last_checkpoint(composed)
    if checkpoint is None:
        log.info("Stopped before there was anything to save.")
    elif stopped.at_once:
        log.info("Stopped at once; steps since the last checkpoint are lost.")
    elif stopped.checkpoint is None:
        log.info("Stopped outside of training: %s holds all steps.", checkpoint)
    else:
        log.info("Stopped. Saved %s.", checkpoint)
    if checkpoint is not None:
        log.info("Resume with\n  %s", resuming(composed))
    return processes.stopped_by(stopped.signal_number, checkpoint is not None)


def last_checkpoint(composed: Composed) -> Path | None:
    """The checkpoint that a run could go on from, or None."""
    directory = composed.config.run_dir
    found = resumable(Path(directory).expanduser()) if directory is not None else []
    return found[0] if found else None


def resuming(composed: Composed) -> str:
    """The command that goes on with a run."""
    kept = [w for w in composed.overrides if w.split("=")[0] not in ("run_dir", "ckpt_path")]
    again = [*kept, compose.word("run_dir", composed.config.run_dir), "ckpt_path=last"]
    return f"{record.program()} {shlex.join(again)}"


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
