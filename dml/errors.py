"""The errors a user can meet. Each one names the input and the mend."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One thing wrong: `where` is what the user typed (``loss.margin=9``), `what` says why and the mend.

    `what` may hold several lines; the first says what is wrong, the others what to do.
    """

    where: str
    what: str


class ConfigurationError(Exception):
    """The command line or what it names (data, weights, directories) cannot work. Exit code 2."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the configuration"
        short = [len(problem.where) for problem in self.problems if len(problem.where) <= 32]
        width = max(short, default=2)
        lines = [head]
        for problem in self.problems:
            first, *rest = problem.what.splitlines()
            if len(problem.where) > width:
                lines += [f"  {problem.where}", f"  {'':{width}}  {first}"]
            else:
                lines.append(f"  {problem.where:{width}}  {first}")
            lines += [f"  {'':{width}}  {line}" for line in rest]
        return "\n".join(lines)


class NotFinite(ValueError):
    """Embeddings, or a loss, that hold NaN or infinity."""


class Interrupted(BaseException):
    """A run stopped on a signal.

    checkpoint: what was saved because of it; None: nothing had to be (outside of training), or nothing was
    (`at_once`: asked a second time).
    """

    def __init__(self, signal_number: int, checkpoint: Path | None = None, at_once: bool = False):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number, self.checkpoint, self.at_once = signal_number, checkpoint, at_once


class RunError(Exception):
    """A run that began cannot go on: an unreadable image, a loss that is not finite. Exit code 1."""


class NoneWhole(RunError):
    """Every checkpoint that a run could go on from is damaged."""
