"""Every loss equals its paper: value and gradient against loops written from the formula."""

import pytest
from loss_cases import (
    compare_with_reference,
    drawn_batches,
    loss_files,
    reference_path,
    variant_id,
    variants,
)

BATCHES = drawn_batches()


def test_enough_batches_are_drawn():
    """The claim of at least 20 batches of every kind holds."""
    assert len(BATCHES) >= 20


@pytest.mark.parametrize("file", loss_files(), ids=variant_id)
def test_has_a_reference(file):
    """A loss that calls itself verified must have the loops that verify it, at its shipped values."""
    assert reference_path(file.name).is_file()
    shipped = file.shipped()
    assert any(
        all(values[key] == shipped[key] for key in values) for values in file.reference.VARIANTS
    ), "no variant of the reference has the shipped values"


@pytest.mark.parametrize(("file", "hyperparameters"), variants(), ids=variant_id)
def test_equals_the_loops(file, hyperparameters):
    """A vectorised loss can be wrong in ways that still train; only the formula itself can tell."""
    failures = []
    for kind, x, labels in BATCHES:
        loss = file.make(**hyperparameters)
        difference = compare_with_reference(loss, file.reference.loss, x, labels, hyperparameters)
        if difference:
            failures.append(f"{kind}: {difference}")
    assert not failures, "\n".join(failures)
