"""The progress bars of long work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

BAR_AFTER = 2.0  # seconds; a bar that flashes by tells nobody anything


@contextmanager
def byte_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, hidden where that is no terminal; yields what tells it how many bytes are done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def share_bar(description: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr for work of some seconds, hidden where that is no terminal.

    Yields what tells it the share that is done.
    """
    console = Console(stderr=True)
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    task, begun = progress.add_task(description, total=1.0), time.monotonic()

    def tell(share: float) -> None:
        if time.monotonic() - begun > BAR_AFTER:
            progress.start()
        progress.update(task, completed=share)

    try:
        yield tell
    finally:
        progress.stop()
