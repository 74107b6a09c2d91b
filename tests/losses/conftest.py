"""Shows, after a run that had them, which check caught which mutant."""

import pytest


@pytest.fixture
def caught(record_property):
    """caught(mutant, check): a row of the table at the end of the run."""

    def record(mutant, check: str) -> None:
        record_property("mutant", str(mutant))
        record_property("caught by", check)

    return record


def pytest_terminal_summary(terminalreporter):
    # Read from the reports, which come from the workers too (pytest -n 2).
    properties = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    rows = sorted((p["mutant"], p["caught by"]) for p in properties if "mutant" in p)
    if rows and terminalreporter.verbosity > -2:
        terminalreporter.section(f"{len(rows)} mutants, and what caught them")
        width = max(len(name) for name, _ in rows)
        for name, check in rows:
            terminalreporter.line(f"{name:{width}}  {check}")
