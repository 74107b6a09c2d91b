"""Mistakes of public implementations, made on purpose in a copy of our source: each must be caught.

A suite that cannot tell a wrong loss from a right one proves nothing. The table at the end of the run
names, for every mutant, the check that caught it; `loops` is the comparison with tests/reference.
"""

import importlib
import math
import shutil
import sys
from dataclasses import dataclass

import pytest
import torch
from loss_cases import ROOT, compare_with_reference, drawn_batches, loss_files

FILES = {file.name: file for file in loss_files()}
BATCHES = drawn_batches()
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in dml/losses/<source>.py, and `loss` is checked; `origin` has made it."""

    loss: str
    mistake: str
    old: str
    new: str
    source: str = ""
    origin: str = ""

    def __str__(self) -> str:
        origin = f" ({self.origin})" if self.origin else ""
        return f"{self.loss}: {self.mistake}{origin}"


MUTANTS = [
    # circle
    Mutant(
        "circle",
        "weight of positives with the wrong sign",
        "1 + margin - similarities.detach()",
        "1 + margin + similarities.detach()",
        origin="quaterion",
    ),
    Mutant(
        "circle",
        "weight of negatives with the wrong sign",
        "similarities.detach() + margin)",
        "similarities.detach() - margin)",
        origin="quaterion",
    ),
    Mutant(
        "circle",
        "gradient through the weights",
        "similarities.detach()",
        "similarities",
        origin="TF-Similarity",
    ),
    Mutant(
        "circle",
        "softplus of each side",
        "F.softplus(lse_n + lse_p)",
        "F.softplus(lse_n) + F.softplus(lse_p)",
        origin="TF-Similarity",
    ),
    Mutant(
        "circle",
        "mean over all rows",
        "mean_over(rows, positives.any(dim=1))",
        "rows.mean()",
        origin="fast-reid",
    ),
    Mutant("circle", "margins swapped", "(similarities - (1 - margin))", "(similarities - margin)"),
    # what all pair losses share
    *[
        Mutant(
            loss,
            "self-match left among the positives",
            "        positives.fill_diagonal_(False)\n",
            "",
            source="pairs",
        )
        for loss in (
            "circle",
            "contrastive",
            "lifted_structure",
            "multi_similarity",
            "smooth_ap",
            "triplet",
        )
    ],
    *[
        Mutant(
            loss,
            "self masked by similarity in a memory",
            "batch.self_slots[:, None] != columns",
            "cosine_similarity(batch.embeddings, batch.reference) < 1 - 1e-5",
            source="pairs",
            origin="research-ms-loss, XBM",
        )
        for loss in ("circle", "smooth_ap", "triplet")
    ],
    Mutant("circle", "logsumexp of nothing", "~(mask | empty)", "~mask", source="pairs"),
    Mutant(
        "circle",
        "similarities under autocast",
        "enabled=False",
        "enabled=torch.is_autocast_enabled('cpu')",
        source="pairs",
    ),
    Mutant(
        "circle",
        "norm that overflows",
        "    x = x / torch.where(largest > 0, largest, 1)\n",
        "",
        source="pairs",
    ),
    Mutant(
        "multi_similarity",
        "NaN embeddings hidden by a comparison",
        "torch.isfinite((extremes * 0).sum() + loss)",
        "torch.isfinite(loss)",
        source="pairs",
    ),
    Mutant(
        "triplet",
        "square root of 0",
        "distances / (-torch.finfo(squares.dtype).tiny - squares)",
        "-1 / distances",
        source="pairs",
        origin="L2 distances without a guard",
    ),
    # smooth_ap
    Mutant(
        "smooth_ap",
        "item counted as above itself",
        "rank = 0.5 + above.sum",
        "rank = 1 + above.sum",
    ),
    Mutant(
        "smooth_ap",
        "order turned round",
        "index_select(0, queries) - own)",
        "index_select(0, queries) * -1 + own)",
    ),
    Mutant(
        "smooth_ap",
        "queries without a positive averaged in",
        "mean_over(values, positives.any(dim=1))",
        "values.mean()",
    ),
    Mutant(
        "smooth_ap",
        "class sizes taken as equal",
        "positives.sum(dim=1).clamp(min=1)",
        "positives.sum(dim=1).max().clamp(min=1)",
        origin="Smooth-AP, PML 2.9",
    ),
    Mutant("smooth_ap", "positives left out of the rank", "positives | negatives", "negatives"),
    # proxies
    Mutant(
        "proxy_nca",
        "the ++ form for the paper's",
        "if positive_in_denominator:",
        "if True:",
        origin="PML",
    ),
    Mutant("proxy_nca", "scale on half the squared distance", "2 * scale * sim", "scale * sim"),
    Mutant(
        "proxy_nca",
        "softmax first, logarithm after",
        'F.cross_entropy(logits, labels, reduction="none")',
        "-logits.softmax(1).gather(1, labels[:, None]).squeeze(1).log()",
        origin="PML 2.9",
    ),
    Mutant(
        "proxy_nca",
        "proxies not normalised",
        "unit(self.proxies.to(embeddings.dtype))",
        "self.proxies.to(embeddings.dtype)",
    ),
    Mutant(
        "proxy_nca",
        "labels beyond the proxies let through",
        "            check_classes(labels, self.num_classes)\n",
        "            labels = labels.clamp(0, self.num_classes - 1)\n",
        origin="PML 2.9",
    ),
    Mutant(
        "arcface",
        "margin beyond theta = pi - m",
        "torch.where(cosine > -math.cos(margin), turned, beyond)",
        "turned",
        origin="Revisiting-DML, quaterion, fast-reid",
    ),
    Mutant(
        "arcface",
        "cosine clamped at 0",
        ".clamp(-limit, limit)",
        ".clamp(1e-10, 1)",
        origin="Revisiting-DML",
    ),
    Mutant("arcface", "cosine not clamped", ".clamp(-limit, limit)", "", origin="OML, fast-reid"),
    Mutant(
        "arcface",
        "radians read as degrees",
        "turned = cosine * math.cos(margin) - sine * math.sin(margin)",
        "turned = cosine * math.cos(margin / 57.3) - sine * math.sin(margin / 57.3)",
        origin="PML's unit with others' values",
    ),
    # multi_similarity
    Mutant(
        "multi_similarity",
        "no mining",
        "positives, negatives = mined(similarities.detach(), *masks, self.epsilon)",
        "positives, negatives = masks",
        origin="PML without its miner",
    ),
    Mutant(
        "multi_similarity",
        "mean over active anchors",
        "rows.mean()",
        "rows.sum() / (rows > 0).sum().clamp(min=1)",
        origin="Revisiting-DML",
    ),
    Mutant(
        "multi_similarity",
        "near duplicates dropped as self",
        "masks = pair_masks(batch, indices_tuple)",
        "masks = [m & (similarities < 1 - 1e-5) for m in pair_masks(batch, indices_tuple)]",
        origin="research-ms-loss",
    ),
    Mutant(
        "multi_similarity",
        "mining margin with the wrong sign",
        "similarities - epsilon < hardest_n",
        "similarities + epsilon < hardest_n",
    ),
    Mutant(
        "multi_similarity",
        "anchors without negatives kept",
        "-math.inf).amax",
        "math.inf).amax",
        origin="PML without its miner",
    ),
    # lifted_structure
    Mutant(
        "lifted_structure",
        "negatives of one end only",
        "torch.logaddexp(of_row[:, None], of_column)",
        "of_row[:, None]",
    ),
    Mutant(
        "lifted_structure",
        "neither square nor half",
        "F.relu(bound).square() / 2",
        "F.relu(bound)",
        origin="TF-Similarity",
    ),
    Mutant("lifted_structure", "no hinge", "F.relu(bound)", "bound", origin="TF-Similarity"),
    Mutant(
        "lifted_structure",
        "squared distances",
        "euclidean_distances(batch.embeddings, batch.reference)",
        "euclidean_distances(batch.embeddings, batch.reference).square()",
    ),
    Mutant(
        "lifted_structure",
        "embeddings normalised",
        "euclidean_distances(batch.embeddings, batch.reference)",
        "euclidean_distances(*map(F.normalize, (batch.embeddings, batch.reference)))",
        origin="PML's default",
    ),
    Mutant("lifted_structure", "logaddexp of nothing", ".clamp(min=least)", ""),
    Mutant(
        "lifted_structure",
        "sum over positives for logsumexp",
        "masked_logsumexp(distances, positives)",
        "(distances * positives).sum(dim=1)",
        origin="Revisiting-DML on a present-day torch",
    ),
    # n_pair
    Mutant(
        "n_pair",
        "embeddings normalised",
        "rows @ columns.T",
        "F.normalize(rows) @ F.normalize(columns).T",
        origin="PML",
    ),
    Mutant(
        "n_pair",
        "penalty on the length, not its square",
        "used.square().sum()",
        "used.norm(dim=1).sum()",
        origin="Revisiting-DML",
    ),
    Mutant(
        "n_pair",
        "all images as anchors",
        "if indices_tuple is None and reference is None:",
        "if False:",
        origin="Revisiting-DML",
    ),
    Mutant(
        "n_pair",
        "exp without logsumexp",
        "nearest = masked_logsumexp(products, negatives)",
        "nearest = (products.exp() * negatives).sum(1).log()",
        origin="Revisiting-DML",
    ),
    # contrastive, triplet
    Mutant("contrastive", "plain hinge for the square", "hinge.square() / 2 if", "hinge if"),
    Mutant(
        "contrastive",
        "mean over all for mean over active",
        'if average == "active" else',
        "if False else",
    ),
    Mutant(
        "contrastive",
        "negative margin with the wrong sign",
        "self.negative_margin - distances_n",
        "distances_n - self.negative_margin",
    ),
    Mutant("triplet", "margin with the wrong sign", "+ margin -", "- margin -"),
    Mutant(
        "triplet",
        "plain distances for squared",
        "unit_distances(similarities, self.squared_distances)",
        "unit_distances(similarities, not self.squared_distances)",
    ),
    Mutant(
        "triplet",
        "mean over all for mean over active",
        '(active if self.average == "active" else count)',
        "count",
    ),
    Mutant(
        "triplet",
        "positive and negative swapped",
        "F.softplus(positive_distances - negative_distances)",
        "F.softplus(negative_distances - positive_distances)",
    ),
]


def loss_class(package: str, name: str):
    """The class of losses/<name>.py inside a copied package."""
    return getattr(importlib.import_module(f"{package}.{name}"), FILES[name].target.__name__)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """copied(mutant) -> its loss class, from a copy of dml/losses with the mistake made in it."""
    made = []

    def copy(mutant: Mutant):
        package = f"mutant_{len(made)}_{tmp_path.name.replace('-', '_')}"
        made.append(package)
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        for name in {"pairs", mutant.loss}:
            text = (ROOT / "dml" / "losses" / f"{name}.py").read_text()
            if name == (mutant.source or mutant.loss) and mutant.old:
                assert mutant.old in text, f"{name}.py no longer has {mutant.old!r}"
                text = text.replace(mutant.old, mutant.new)
            (folder / f"{name}.py").write_text(text.replace("dml.losses.", f"{package}."))
        importlib.invalidate_caches()
        return loss_class(package, mutant.loss)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield copy
    for module in [name for name in sys.modules if name.split(".")[0] in made]:
        del sys.modules[module]
    shutil.rmtree(tmp_path, ignore_errors=True)


def build(name: str, target: type, **hyperparameters):
    """The shipped loss, of the class given."""
    file = FILES[name]
    values = file.shipped() | hyperparameters
    if file.parametric:
        values |= {"num_classes": 6, "embedding_dim": 4}
    torch.manual_seed(0)
    return target(**values)


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
    try:
        build(name, target)(normal(2), torch.tensor([0, 6]))
    except ValueError as error:
        return "" if "label 6" in str(error) else "message"
    return "no error"


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
@pytest.mark.parametrize("name", sorted({mutant.loss for mutant in MUTANTS}))
def test_the_checks_pass_on_the_original(copied, name):
    """A check that fails on the right loss would 'catch' every mutant."""
    target = copied(Mutant(name, "none", "", ""))
    complaints = {check.__name__: check(name, target) for check in CHECKS}
    if name == "n_pair":  # pairs by role without a memory, all pairs with one
        complaints.pop("self_is_a_slot")
    assert not any(complaints.values()), complaints


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_caught(copied, killed, mutant):
    """The first check that complains is the one the table names."""
    target = copied(mutant)
    for check in CHECKS:
        try:
            complaint = check(mutant.loss, target)
        except (ValueError, RuntimeError, IndexError) as error:
            complaint = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
        if complaint:
            killed.append((str(mutant), f"{check.__name__}: {complaint}"))
            return
    pytest.fail(f"no check caught: {mutant}")
