"""Options of `dml-search serve=true`.  Needs neither torch nor FastAPI."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from dml.config.options import Parser, text, whole

MOST_RESULTS = 200  # of one request


def positive(unit: str) -> Parser:
    """A number above 0 of some unit."""

    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ValueError(f"must be a number of {unit} above 0.")
        return number

    return parse


def option(default: Any, parse: Parser, help: str) -> Any:
    """A field with its parser and a line of help."""
    return field(default=default, metadata={"parse": parse, "help": help})


@dataclass(frozen=True)
class Options:
    """How to serve."""

    host: str = option("127.0.0.1", text, "address to listen at; 0.0.0.0: every network")
    port: int = option(8000, whole(0, 65535), "0: any that is free")
    max_upload_mb: float = option(10.0, positive("megabytes"), "largest request, in 10^6 bytes")
    max_pixels: int = option(50_000_000, whole(1), "largest image; its header tells")
    timeout: float = option(30.0, positive("seconds"), "longest time of a request, in seconds")
    max_requests: int = option(256, whole(1), "at a time; more are told to come again")
    max_batch: int = option(32, whole(1), "images that are embedded together")
    batch_wait_ms: float = option(
        3.0, positive("milliseconds"), "how long an image waits for others"
    )

    @property
    def max_upload(self) -> int:
        """Largest request, in bytes."""
        return int(self.max_upload_mb * 1_000_000)


# name -> (parser that raises ValueError, default, one line of help)
OPTIONS: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    f.name: (f.metadata["parse"], f.default, f.metadata["help"]) for f in fields(Options)
}
