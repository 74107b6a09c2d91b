"""The log of a run, beside what the terminal shows."""

import logging
from pathlib import Path

log = logging.getLogger("dml")

FILE = "log.txt"


def log_to(directory: Path) -> None:
    """Append messages to directory/log.txt, and to no other file any more."""
    for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(directory / FILE)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
