"""docs/bad_input.md: what the commands say to bad input, as they say it now."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "bad_input.md"


def rows() -> list[list[str]]:
    """what, command, exit code, message: of each line of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0] != "tried"]


@pytest.mark.slow
def test_the_page_is_current():
    """Each line again, by the real commands: the same exit codes and the same words."""
    command = [sys.executable, "docs/bad_input.py", "check=true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_line_fails_in_words():
    """Exit code 1 or 2, a message, and no place of the machine that made the page."""
    found = rows()
    assert len(found) > 70
    assert {command.split()[0].strip("`") for _, command, _, _ in found} == {
        *("dml-train", "dml-eval", "dml-data", "dml-report", "dml-export", "dml-index"),
        "dml-search",
    }
    for what, command, code, message in found:
        assert code in ("1", "2"), command
        assert len(message) > 20, what
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(
        r"/tmp/|/home/|/root/|not foreseen|Traceback", text.replace("../../tmp", "")
    )


def test_every_message_of_a_wrong_command_line_counts_the_problems():
    """Exit code 2 is the one form in which all that is wrong is told at once."""
    for what, _, code, message in rows():
        assert (" in the configuration" in message) == (code == "2"), what
