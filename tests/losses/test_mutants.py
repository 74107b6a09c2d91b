"""Mistakes made on purpose in a copy of dml/losses (mutants.txt): each must be caught.

A suite that cannot tell a wrong loss from a right one proves nothing. The table at the end of the run
names, for every mutant, the check that caught it; `loops` is the comparison with tests/reference.
"""

import importlib
import math
import shutil
import sys

import pytest
import torch
from loss_cases import ROOT, compare_with_reference, drawn_batches, loss_files
from mutants import LOSSES, Mutant

FILES = {file.name: file for file in loss_files()}
BATCHES = drawn_batches()
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
SOURCES = {path.stem: path.read_text() for path in (ROOT / "dml" / "losses").glob("[!_]*.py")}
# The other losses are told from their mutants by the loops alone.
NINE = (
    "arcface",
    "circle",
    "contrastive",
    "lifted_structure",
    "multi_similarity",
    "n_pair",
    "proxy_nca",
    "smooth_ap",
    "triplet",
)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """copied(name, {file: text, ...}) -> that loss's class, from a copy of dml/losses so changed."""
    package = f"copy_of_losses_{tmp_path.name.replace('-', '_')}"

    def copy(name: str, changed: dict[str, str]):
        folder = tmp_path / package
        folder.mkdir()
        for file, text in (SOURCES | changed).items():
            (folder / f"{file}.py").write_text(text.replace("dml.losses.", f"{package}."))
        importlib.invalidate_caches()
        return getattr(importlib.import_module(f"{package}.{name}"), FILES[name].target.__name__)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield copy
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[module]
    shutil.rmtree(tmp_path)


def build(name: str, target: type, **hyperparameters):
    """The shipped loss, of the class given."""
    return FILES[name].make(target=target, **hyperparameters)


# ---------------------------------------------------------------- the checks, in the order they are asked


def loops(name: str, target: type) -> str:
    """Value and gradient against tests/reference, all variants, all drawn batches."""
    reference = FILES[name].reference
    for hyperparameters in reference.VARIANTS:
        for kind, x, labels in BATCHES:
            loss = build(name, target, **hyperparameters)
            difference = compare_with_reference(loss, reference.loss, x, labels, hyperparameters)
            if difference:
                return f"{difference.split(' off')[0].split(' ')[0]} on batch {kind}"
    return ""


def step(loss, x, labels, **keywords):
    x = x.clone().requires_grad_()
    value = loss(x, labels, **keywords)
    value.backward()
    gradients = [x.grad, *(parameter.grad for parameter in loss.parameters())]
    return value.detach(), all(g.isfinite().all() for g in gradients) and bool(value.isfinite())


def normal(n: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def finite_on_duplicates(name: str, target: type) -> str:
    for source in (0, 3):
        x = normal(8)
        x[1], x[5] = x[0], x[source]
        if not step(build(name, target), x, LABELS)[1]:
            return "gradient not finite"
    return ""


def finite_on_the_proxies(name: str, target: type) -> str:
    if not FILES[name].parametric:
        return ""
    for sign in (1, -1):
        loss = build(name, target)
        with torch.no_grad():
            loss.proxies.copy_(torch.eye(6, 4) + torch.eye(6, 4).flip(0))
        if not step(loss, sign * loss.proxies.detach(), torch.arange(6))[1]:
            return "gradient not finite"
    return ""


def finite_at_any_scale(name: str, target: type) -> str:
    # Cosines do not depend on it, distances and products do, with their squares and exponentials.
    size = {"cosine": 1e30, "euclidean": 1e12, "dot": 30.0}[FILES[name].schema.geometry]
    value, finite = step(build(name, target), normal(8) * size, LABELS)
    exact, _ = step(build(name, target).double(), normal(8).double() * size, LABELS)
    if not finite:
        return "not finite"
    return "" if torch.allclose(value.double(), exact, rtol=1e-4) else "value"


def hardest_sample_counts(name: str, target: type) -> str:
    if name != "proxy_nca":
        return ""
    loss = target(num_classes=2, embedding_dim=2, scale=32.0, positive_in_denominator=True)
    loss.load_state_dict({"proxies": torch.tensor([[-1.0, 0.0], [1.0, 0.0]])})
    value, finite = step(loss, torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    return "" if finite and math.isclose(value, 128, rel_tol=1e-6) else "value"


def labels_are_checked(name: str, target: type) -> str:
    if not FILES[name].parametric:
        return ""
    for wrong in (-1, 6):
        try:
            build(name, target)(normal(2), torch.tensor([0, wrong]))
        except ValueError as error:
            if f"label {wrong}" not in str(error):
                return "message"
        else:
            return "no error"
    return ""


def nan_is_named(name: str, target: type) -> str:
    x = normal(8)
    x[7] = math.nan  # a class of its own: where positives are averaged the row can vanish
    try:
        build(name, target)(x, LABELS)
    except ValueError as error:
        return "" if "embeddings: row 7" in str(error) else "message"
    return "no error"


def no_nan_on_the_way(name: str, target: type) -> str:
    """A NaN that a later step multiplies away is still found by anomaly detection."""
    x = normal(5)
    for labels in ([2] * 5, [0, 1, 2, 3, 4], [0, 0, 1, 2, 3]):
        with torch.autograd.detect_anomaly(check_nan=True):
            try:
                step(build(name, target), x, torch.tensor(labels))
            except RuntimeError as error:
                return str(error).splitlines()[0]
    return ""


def autocast_is_off(name: str, target: type) -> str:
    loss, x = build(name, target), normal(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(x, LABELS)
    return "" if torch.equal(inside, loss(x, LABELS)) else "value"


def self_is_a_slot(name: str, target: type) -> str:
    if FILES[name].schema.compares == "proxies":
        return ""
    x, loss = normal(8), build(name, target)
    memory, labels = torch.cat([x, x[:1]]), torch.cat([LABELS, LABELS[:1]])
    values = []
    for duplicate in (x[0], -x[0]):
        memory[-1] = duplicate
        values.append(
            loss(x, LABELS, reference=memory, reference_labels=labels, self_slots=torch.arange(8))
        )
    return (
        "a duplicate in the memory makes no difference"
        if values[0] == values[1]
        else exact_memory(loss, x)
    )


def exact_memory(loss, x: torch.Tensor) -> str:
    """The same image under another label: as near as can be, and the hardest negative there is."""
    memory, labels = torch.cat([x, x[:1]]), torch.cat([LABELS, LABELS[3:4]])
    slots = torch.arange(9)
    whole = loss(memory, labels)
    as_memory = loss(
        memory, labels, reference=memory.clone(), reference_labels=labels, self_slots=slots
    )
    return "" if torch.allclose(whole, as_memory, rtol=1e-5) else "value with a duplicate"


CHECKS = [
    loops,
    finite_on_duplicates,
    finite_on_the_proxies,
    finite_at_any_scale,
    hardest_sample_counts,
    labels_are_checked,
    nan_is_named,
    no_nan_on_the_way,
    autocast_is_off,
    self_is_a_slot,
]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", NINE)
def test_the_checks_pass_on_the_original(copied, name):
    """A check that fails on the right loss would 'catch' every mutant."""
    target = copied(name, {})
    complaints = {check.__name__: check(name, target) for check in CHECKS}
    if name == "n_pair":  # pairs by role without a memory, all pairs with one
        complaints.pop("self_is_a_slot")
    assert not any(complaints.values()), complaints


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
@pytest.mark.parametrize("mutant", LOSSES, ids=str)
def test_mutant_is_caught(copied, caught, mutant: Mutant):
    """The first check that complains is the one the table names."""
    target = copied(mutant.subject, {mutant.file.removeprefix("losses/"): mutant.applied()})
    for check in CHECKS if mutant.subject in NINE else [loops]:
        try:
            complaint = check(mutant.subject, target)
        except (ValueError, RuntimeError, IndexError) as error:
            complaint = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
        if complaint:
            caught(mutant, f"{check.__name__}: {complaint}")
            return
    pytest.fail(f"no check caught: {mutant}")
