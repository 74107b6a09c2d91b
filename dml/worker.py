"""One of the processes that `dml.processes.start` started: `python -m dml.worker key=value ...`."""

import json
import os
import sys

from dml import cli, job
from dml.processes import TYPED


def main() -> None:
    """Train, as one of several, and exit as dml-train would."""
    words = sys.argv[1:]
    sys.argv[:] = json.loads(os.environ.pop(TYPED))  # what the record tells to type
    job.end_with_parent()
    cli.exit_with(lambda _: cli.train_one(*cli.checked(words)))


if __name__ == "__main__":
    main()
