"""A run's own directory: which checkpoints it may hold, who may write into it, what a kill leaves behind.

Torch-free: a command line is checked against it before anything heavy is imported.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dml.errors import ConfigurationError, Problem, RunError

log = logging.getLogger("dml")

CHECKPOINTS = "checkpoints"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"  # within it
CURVES = "metrics.csv"
LOCK = ".lock"


def resumable(run_dir: Path) -> list[Path]:
    """The checkpoints that a run can go on from, newest first, whole or damaged."""
    paths = (run_dir / CHECKPOINTS / name for name in (LAST, PREVIOUS))
    return [path for path in paths if path.is_file()]


@contextmanager
def locked(directory: Path, *, waits: bool = False) -> Iterator[None]:
    """Be the only process that writes into a directory, which is made if need be.

    The lock is the process's own, not its workers': it is gone with the process, however that ends.

    waits: for another process to leave it.  Else raises RunError if there is one.  Raises
    ConfigurationError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("w")
    except OSError as error:
        what = f"cannot be written ({error.strerror}). Choose another directory."
        raise ConfigurationError([Problem(f"run_dir={directory}", what)]) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not waits:
                raise RunError(
                    f"another process is writing into {directory}.\n"
                    "Wait until it is done, stop it, or choose another directory."
                ) from error
            log.info("Waiting for another process that writes into %s", directory)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def remove_leftovers(run_dir: Path) -> None:
    """Remove files that a killed process was still writing aside (`record.aside`): none has its name yet."""
    for folder in (run_dir, run_dir / CHECKPOINTS):
        for name in (LAST, BEST, CURVES, "config.yaml", "record.json"):
            for path in folder.glob(f".{name}.*"):
                log.info("Removing %s, which a killed process left half-written.", path)
                path.unlink()
