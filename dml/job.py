"""One job of a sweep or search, in the process that a launcher started for it: `python -m dml.job JSON`.

Goes on with what an earlier start of the job left in its directory.
"""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from dml import cli, record
from dml.launchers import Job
from dml.log_file import log_to
from dml.run_directory import locked, resumable

log = logging.getLogger("dml")


def main() -> None:
    """Run the job that the first argument describes, and exit as the command it stands for."""
    # Slurm sends it to every process of the job; submitit, our parent, answers it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    job = Job(**json.loads(sys.argv[1]))
    sys.argv[:] = [job.program, *job.words]  # what the record tells to type
    end_with_parent()
    cli.exit_with(lambda words: run(job))


def run(job: Job) -> int:
    """Run the job; returns its exit code.  Raises as `dml-train`."""
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    log_to(directory)  # the run does so again, but may fail before
    with locked(directory, waits=True):
        words = list(job.words)
        if resumable(directory):
            words.append("ckpt_path=last")
        if job.trial is not None:
            from dml import search

            return search.run_trial(words, job)
        if (directory / record.FILE).exists():  # by a process that outlived the sweep before
            return 0
        return cli.train_one(*cli.checked(words))


def end_with_parent() -> None:
    """Stop, as on SIGTERM, when the launcher is gone: our input is a pipe of which it holds the other end.

    A job that went on by itself would meet the next start of its sweep in the same directory.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main()
