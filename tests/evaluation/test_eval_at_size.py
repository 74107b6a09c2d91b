"""Larger sets: memory stays bounded, chunks equal the whole, PML agrees where it means the same."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from eval_checks import ALL, unit

import dml.evaluation.neighbours as neighbours
from dml.evaluation import evaluate

PROBE = """
import json
import numpy as np
from dml.evaluation import evaluate
from dml.record import peak_resident
rng = np.random.default_rng(0)
n, d = 12000, 32
labels = rng.permutation(np.repeat(np.arange(n // 6), 6))
x = rng.standard_normal((n // 6, d), dtype=np.float32)[labels]
x += 0.5 * rng.standard_normal((n, d), dtype=np.float32)
for backend in ("torch", "faiss"):
    evaluate(x[:500], labels[:500] // 9, backend=backend)
before = peak_resident()
for backend in ("torch", "faiss"):
    metrics = ("recall@1", "recall@1000", "map@r")
    found = evaluate(x, labels, metrics=metrics, backend=backend, memory=1 << 26)
peak = peak_resident() - before
print(json.dumps({"megabytes": peak / 2**20, **found}))
"""


def test_memory_is_bounded():
    """12,000 squared float32 similarities are 576 MB; a bound of 64 MB is kept to."""
    output = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(output.splitlines()[-1])
    assert (
        found["megabytes"] < 64 + 32
    )  # the prepared copy is 1.5 MB; allocators and libraries keep some
    assert 0.1 < found["map@r"] < found["recall@1"] < found["recall@1000"] <= 1


def sample(n, classes, d, noise, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    x = unit(rng.standard_normal((classes, d)))[labels] + noise * rng.standard_normal((n, d))
    return x.astype(np.float32), labels


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("classes", [3, 40, 200])
def test_tiles_of_any_size_agree(classes, similarity, monkeypatch):
    """Comparing or sorting, mirrored or not, one tile or many, lists or none: the same bits."""
    x, labels = sample(600, classes, 24, 0.3)
    options = {"metrics": ALL, "similarity": similarity}
    whole = evaluate(x, labels, backend="torch", **options)
    assert evaluate(x, labels, backend="faiss", **options) == whole
    assert evaluate(x, labels, backend="torch", memory=1 << 22, **options) == whole
    gallery = {"gallery": x, "gallery_labels": labels}
    ids = {"query_ids": np.arange(600), "gallery_ids": np.arange(600)}
    assert evaluate(x, labels, backend="torch", **gallery, **ids, **options) == whole
    for always in ("SORT_FROM", "MANY"):
        for value in (0, 10**9):
            with monkeypatch.context() as patch:
                patch.setattr(neighbours, always, value)
                patch.setattr(neighbours, "CPU_TILE", 1 << 15)
                assert evaluate(x, labels, backend="torch", **options) == whole
    for cost in (0, 10**9):  # doubts settled pair by pair, or row by row
        with monkeypatch.context() as patch:
            patch.setattr(neighbours, "PAIR_COST", cost)
            assert evaluate(x, labels, backend="torch", **options) == whole


def test_one_query_against_a_large_gallery():
    x, labels = sample(5000, 700, 16, 0.2)
    found = evaluate(x[:1], labels[:1], x[1:], labels[1:], metrics=("recall@1", "map@r"))
    similarity = unit(x[1:].astype(np.float64)) @ unit(x[:1].astype(np.float64))[0]
    hits = labels[1:][np.argsort(-similarity)] == labels[0]
    positives = hits.sum()
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    assert found["recall@1"] == hits[0]
    assert found["map@r"] == pytest.approx((precision * hits)[:positives].sum() / positives)


@pytest.mark.parametrize("normalise", [True, False])
def test_agrees_with_pml(normalise):
    """Precision at 1, MAP@R and R-precision are defined alike; no ties here, lone queries in both."""
    module = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = sample(900, 120, 32, 0.25, seed=1)
    labels[labels < 5] = np.arange((labels < 5).sum()) + 1000  # some lone ones
    calculator = module.AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"),
        k="max_bin_count",
        device=torch.device("cpu"),
    )
    theirs = calculator.get_accuracy(
        torch.from_numpy(unit(x) if normalise else x), torch.from_numpy(labels)
    )
    for backend in ("torch", "faiss"):
        ours = evaluate(
            x,
            labels,
            metrics=("precision@1", "recall@1", "map@r", "r_precision"),
            similarity="cosine" if normalise else "euclidean",
            backend=backend,
        )
        assert ours["recall@1"] == ours["precision@1"]
        assert ours["precision@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-9)
        assert ours["map@r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-9)
        assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-9)
