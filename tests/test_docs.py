"""The documentation is generated from the code, complete, and links to files that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOSSES = sorted(path.stem for path in (ROOT / "configs" / "loss").glob("*.yaml"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.slow
def test_generated_pages_are_current():
    """A page that says what the code did last month is worse than none."""
    command = [sys.executable, "docs/build.py", "check=true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_a_page(loss):
    """Also one added a minute ago: `python docs/build.py` finds it by its YAML."""
    page = ROOT / "docs" / "losses" / ("pml.md" if loss.startswith("pml_") else f"{loss}.md")
    assert page.is_file(), "run python docs/build.py"
    assert f"loss={loss}\n" in page.read_text()
    assert f"[{loss}](" in (page.parent / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    """Links and pictures to files of the repository; other addresses are not looked at."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_every_difference_names_a_test_that_exists():
    """docs/differences.yaml states facts about other libraries; each hangs on a test."""
    text = (ROOT / "docs" / "differences.yaml").read_text()
    tests = re.findall(r"test: (\S+)::(\w+)", text)
    assert len(tests) == text.count("  text: ") > 10
    for path, name in tests:
        assert f"def {name}(" in (ROOT / path).read_text(), name
