"""The log of a run, beside what the terminal shows."""

import logging
import sys
from pathlib import Path

log = logging.getLogger("dml")

FILE = "log.txt"


def log_to(directory: Path) -> None:
    """Append messages to directory/log.txt, and to no other file any more."""
    for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()
    handler = LogFile(directory / FILE)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)


class LogFile(logging.FileHandler):
    """A log on a disk that may be full: the run then ends with OSError, which its last words outlive."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where a line could not be written, and within the handling of why."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif record.levelno < logging.ERROR and not getattr(record, "quiet", False):
            error.filename = error.filename or self.baseFilename
            raise error

    def close(self) -> None:
        """Close the file, also where what is left of a line has no room."""
        try:
            super().close()
        except OSError:
            sys.stderr.write(f"{self.baseFilename} lacks its last lines: no room.\n")
