"""Agreement with other projects' evaluators, where the definitions coincide; their own where they do not.

No ties in the data, except where said: their orders are not ours.
"""

import numpy as np
import pytest
import torch
from eval_checks import unit

from dml.evaluation import evaluate, evaluate_detailed
from dml.evaluation.clusters import Clustering, ami, nmi

RNG = np.random.default_rng(1)
LABELS = RNG.permutation(np.arange(300) % 60)
X = unit(RNG.standard_normal((60, 24)))[LABELS] + 0.25 * RNG.standard_normal((300, 24))
X = unit(X).astype(np.float32)


def pml(**options):
    module = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    calculator = module.AccuracyCalculator(device=torch.device("cpu"), **options)
    return calculator.get_accuracy(torch.from_numpy(X), torch.from_numpy(LABELS))


def test_ranks_agree_with_pml():
    """Over the whole ranking (k=None) and per class (avg_of_avgs)."""
    names = {
        "precision_at_1": "cmc@1",
        "mean_average_precision": "map",
        "mean_average_precision_at_r": "map@r",
        "mean_reciprocal_rank": "mrr",
        "r_precision": "r_precision",
    }
    for average in ("micro", "macro"):
        theirs = pml(include=tuple(names), avg_of_avgs=average == "macro")
        ours = evaluate(X, LABELS, metrics=tuple(names.values()), average=average)
        for their_name, name in names.items():
            assert ours[name] == pytest.approx(theirs[their_name], abs=1e-6), name


@pytest.mark.filterwarnings("ignore")
def test_map_at_r_with_few_neighbours_is_pmls():
    """PML with k < R: what a table made with it says, and why it is lower."""
    for k in (1, 2, 3):
        theirs = pml(include=("mean_average_precision_at_r",), k=k)
        name = f"legacy/map@r@{k}_pml"
        ours = evaluate(X, LABELS, metrics=(name, "map@r"))
        assert ours[name] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-9)
        assert ours[name] < ours["map@r"]


def test_clustering_scores_agree_with_pml():
    """The same assignment handed to both; k-means themselves may differ."""
    clusters = np.where(RNG.random(300) < 0.7, LABELS, RNG.integers(0, 60, 300))
    module = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    calculator = module.AccuracyCalculator(device=torch.device("cpu"))
    for function, theirs in ((nmi, calculator.calculate_NMI), (ami, calculator.calculate_AMI)):
        assert function(Clustering(LABELS, clusters)) == pytest.approx(theirs(LABELS, clusters))


def oml_functions():
    return pytest.importorskip(
        "oml.functional.metrics",
        reason="open-metric-learning is not installed: its definitions are not compared",
    )


def oml_rankings(k):
    """Retrieved ids of the k nearest, self left out, and the ids of each query's positives."""
    similarity = X.astype(np.float64) @ X.astype(np.float64).T
    np.fill_diagonal(similarity, -np.inf)
    retrieved = torch.from_numpy(np.argsort(-similarity, axis=1)[:, :k].copy())
    same = (LABELS[:, None] == LABELS[None]) & ~np.eye(len(X), dtype=bool)
    return list(retrieved), [torch.from_numpy(np.flatnonzero(row)) for row in same]


def test_legacy_ranks_are_those_of_oml():
    functions = oml_functions()
    k = 7
    theirs = functions.calc_retrieval_metrics(
        *oml_rankings(k), cmc_top_k=(1, k), precision_top_k=(2, k), map_top_k=(2, k), verbose=False
    )
    names = {
        "cmc@1": ("cmc", 1),
        f"cmc@{k}": ("cmc", k),
        "legacy/precision@2_oml": ("precision", 2),
        f"legacy/precision@{k}_oml": ("precision", k),
        "legacy/map@2_oml": ("map", 2),
        f"legacy/map@{k}_oml": ("map", k),
    }
    ours = evaluate(X, LABELS, metrics=tuple(names))
    for name, (theirs_name, cut) in names.items():
        assert ours[name] == pytest.approx(float(theirs[theirs_name][cut]), abs=1e-6), name


def test_fnmr_is_omls_where_its_quantile_is_a_pair():
    """Its threshold is interpolated between two pairs; with 1 + a multiple of 1/fmr of them it is one."""
    functions = oml_functions()
    x, labels = X[:24], np.arange(24) % 3  # 24 * 16 different pairs, 384
    distances = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(2)
    same = labels[:, None] == labels[None]
    own = np.eye(24, dtype=bool)
    different = np.sort(distances[~same])
    for fmr in (1 / 383 * 4, 1 / 383 * 100):
        theirs = functions.calc_fnmr_at_fmr(distances[same & ~own], different, (fmr,))
        # a hair more than 4/383 of 384 pairs are still 4
        ours = evaluate(x, labels, metrics=[f"fnmr@fmr={fmr:.12f}"])
        assert next(iter(ours.values())) == pytest.approx(float(theirs[0]), abs=1e-6)


def test_pcf_is_that_of_oml():
    functions = oml_functions()
    x = X * np.linspace(0.2, 2, 24, dtype=np.float32)
    theirs = functions.calc_pcf(torch.from_numpy(unit(x)), (0.5, 0.9, 0.99))
    ours = evaluate(x, LABELS, metrics=("pcf@0.5", "pcf@0.9", "pcf@0.99"))
    assert list(ours.values()) == pytest.approx([float(value) for value in theirs])


def test_market1501_by_hand():
    """CMC and mINP as person re-identification computes them: a match per query, a curve, its mean."""
    gallery, gallery_labels = X[:150], LABELS[:150]
    query, labels = X[150:], LABELS[150:]
    found = evaluate_detailed(
        query, labels, gallery, gallery_labels, metrics=("cmc@1", "cmc@5", "map", "minp")
    )
    order = np.argsort(-(query.astype(np.float64) @ gallery.T.astype(np.float64)), axis=1)
    matches = gallery_labels[order] == labels[:, None]
    matches = matches[matches.any(1)]
    curve = np.minimum(matches.cumsum(1), 1).mean(0)
    last = matches.shape[1] - np.argmax(matches[:, ::-1], axis=1)
    assert found.metrics["cmc@1"] == pytest.approx(curve[0])
    assert found.metrics["cmc@5"] == pytest.approx(curve[4])
    assert found.metrics["minp"] == pytest.approx((matches.sum(1) / last).mean())
