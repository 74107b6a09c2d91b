"""The mistakes of mutants.txt, and how one is made in a copy of the source."""

import re
from dataclasses import dataclass
from pathlib import Path

from loss_cases import ROOT


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in dml/<file>.py, and `subject` is checked."""

    subject: str
    mistake: str
    file: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.mistake}"

    def applied(self) -> str:
        """The source with the mistake in it."""
        text = (ROOT / "dml" / f"{self.file}.py").read_text()
        assert self.old in text, f"{self.file}.py no longer has {self.old!r}"
        return text.replace(self.old, self.new)


def read(text: str, folder: str) -> list[Mutant]:
    """The mutants of one part of the file; see its head for the form."""
    found = []
    for block in text.strip().split("\n\n"):
        head, *lines = block.splitlines()
        where, mistake = head.split(": ", 1)
        subjects, _, file = where.partition(" in ")
        assert all(line[:2] in ("- ", "+ ") for line in lines), block
        old, new = ("\n".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
        found += [
            Mutant(subject, mistake, folder + (file or subject), old, new)
            for subject in subjects.split(", ")
        ]
    return found


_, _losses, _others = re.split(
    r"^# \w+\n", Path(__file__).with_suffix(".txt").read_text(), flags=re.MULTILINE
)
LOSSES, OTHERS = read(_losses, "losses/"), read(_others, "")
