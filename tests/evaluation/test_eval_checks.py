"""Every check of eval_checks.py on the real thing, and 200 drawn cases on both backends."""

import eval_checks
import pytest

import dml.evaluation


@pytest.mark.parametrize("check", eval_checks.CHECKS, ids=lambda check: check.__name__)
def test_holds(check):
    check(dml.evaluation)


@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in range(0, 200, 50)], ids=str
)
def test_drawn_cases_equal_the_reference(seeds):
    """Every odd shape: exact against the literal reference, whole and in small chunks."""
    eval_checks.drawn_cases_equal_the_reference(dml.evaluation, seeds)
    eval_checks.drawn_sets_equal_the_reference(dml.evaluation, seeds)
