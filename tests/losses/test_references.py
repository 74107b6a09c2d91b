"""Every loss equals its paper: value and gradient against loops written from the formula."""

import pytest
from loss_cases import (
    drawn_batches,
    loss_files,
    reference_path,
    value_and_gradients,
    variant_id,
    variants,
)

BATCHES = drawn_batches()


def compare_with_reference(loss, reference, x, labels, hyperparameters) -> str:
    """Empty if value (1e-6) and gradients (1e-5, relative) agree, else what differs."""
    loss = loss.double()
    parameters = dict(loss.named_parameters())
    value, gradients = value_and_gradients(lambda x: loss(x, labels), x, parameters.values())
    copies = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    expected, expected_gradients = value_and_gradients(
        lambda x: reference(x, labels.tolist(), **hyperparameters, **copies), x, copies.values()
    )
    if not (value - expected).abs() <= 1e-6 * expected.abs() + 1e-12:
        return f"value {value.item():.9g}, reference {expected.item():.9g}"
    for name, ours, theirs in zip(
        ["embeddings", *parameters], gradients, expected_gradients, strict=True
    ):
        error = (ours - theirs).abs().max()
        if not error <= 1e-5 * theirs.abs().max() + 1e-9:
            return (
                f"gradient of {name} off by {error.item():.3g} of {theirs.abs().max().item():.3g}"
            )
    return ""


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
