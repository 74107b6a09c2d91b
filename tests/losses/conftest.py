"""Shows, after a run that had them, which check caught which mutant."""

import pytest

KILLED = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[KILLED] = []


def pytest_terminal_summary(terminalreporter):
    rows = terminalreporter.config.stash[KILLED]
    if rows and terminalreporter.verbosity > -2:
        terminalreporter.section("mutants of the losses, and what caught them")
        width = max(len(name) for name, _ in rows)
        for name, killer in rows:
            terminalreporter.line(f"{name:{width}}  {killer}")


@pytest.fixture
def killed(request):
    """List of (mutant, check) for the table at the end of the run."""
    return request.config.stash[KILLED]
