"""Metrics of pairs, clusterings and spaces against sklearn and by hand; tables of queries and classes."""

import math

import numpy as np
import pytest
import torch
from eval_checks import reference_of_sets, unit

from dml.evaluation import evaluate, evaluate_detailed
from dml.evaluation.clusters import Clustering, ami, cluster, f1, nmi
from dml.evaluation.names import parse
from dml.evaluation.verification import PairCounts


def sample(n=300, classes=20, d=16, noise=0.6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = unit(rng.standard_normal((classes, d)))[labels] + noise * rng.standard_normal((n, d))
    return x.astype(np.float32), labels


# -- verification


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_auc_and_fnmr_agree_with_sklearn(similarity):
    """The same pairs in one list: roc_auc_score, and the point of roc_curve at the rate asked for."""
    metrics = pytest.importorskip("sklearn.metrics")
    x, labels = sample()
    y = unit(x.astype(np.float64)) if similarity == "cosine" else x.astype(np.float64)
    scores = y @ y.T
    if similarity == "euclidean":
        scores = -((y[:, None] - y[None]) ** 2).sum(2)
    pairs = ~np.eye(len(x), dtype=bool)
    same = (labels[:, None] == labels[None])[pairs]
    found = evaluate(x, labels, metrics=("auc", "fnmr@fmr=1e-2"), similarity=similarity)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(same, scores[pairs]), abs=1e-6)
    fmr, tmr, _ = metrics.roc_curve(same, scores[pairs], drop_intermediate=False)
    assert found["fnmr@fmr=1e-2"] == pytest.approx(1 - tmr[fmr <= 1e-2].max(), abs=1e-4)


def test_fnmr_by_hand():
    """10 different pairs; same pairs with 0, 1, 1 (tied with one), 5 and 10 of them at or above."""
    pairs = PairCounts(
        same=np.array([4, 3, 2, 1]),
        above=np.array([10, 5, 1, 0]),
        tied=np.array([0, 0, 1, 0]),
        different=10,
    )
    for fmr, refused in (("0.05", 9), ("0.1", 9), ("0.2", 7), ("0.29", 7), ("0.5", 4), ("0.99", 4)):
        assert parse(f"fnmr@fmr={fmr}").compute(pairs) == refused / 10
    lost = 4 * 10 + 3 * 5 + 2 * 1.5
    assert parse("auc").compute(pairs) == pytest.approx(1 - lost / 100)


def test_shares_in_names_are_decimal():
    """0.29 of 100 pairs are 29, which 0.29 * 100 in floating point is not."""
    pairs = PairCounts(np.array([1]), np.array([29]), np.array([0]), 100)
    assert math.floor(0.29 * 100) == 28
    assert parse("fnmr@fmr=0.29").compute(pairs) == 0.0


def test_pairs_in_any_memory():
    """Tiles and passes of any size: the same counts."""
    x, labels = sample(90)
    metrics = ("auc", "fnmr@fmr=1e-2", "alignment", "uniformity")
    whole = evaluate(x, labels, metrics=metrics)
    for memory in (1 << 15, 1 << 20):
        again = evaluate(x, labels, metrics=metrics, memory=memory)
        assert again == pytest.approx(whole, abs=1e-12)
        assert again["auc"] == pytest.approx(whole["auc"], abs=1e-15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_pairs():
    x, labels = sample(2000)
    metrics = ("auc", "fnmr@fmr=1e-3", "alignment", "uniformity", "rho_spectrum", "intra_inter")
    here, there = (
        evaluate(y, labels, metrics=metrics, backend="torch")
        for y in (torch.from_numpy(x), torch.from_numpy(x).cuda())
    )
    assert there == pytest.approx(here, abs=1e-12)


# -- clusterings


@pytest.mark.parametrize("seed", range(20))
def test_clustering_metrics_equal_the_reference(seed):
    """Drawn codes of few and many clusters, at chance and nearly right."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    classes = rng.integers(0, rng.integers(1, n), n)
    clusters = np.where(rng.random(n) < seed / 20, classes, rng.integers(0, 5, n))
    found = Clustering(*(np.unique(codes, return_inverse=True)[1] for codes in (classes, clusters)))
    codes = [column.tolist() for column in found]
    for function in (nmi, f1):
        expected = getattr(reference_of_sets, function.__name__)(*codes)
        assert function(found) == pytest.approx(expected, abs=1e-9)
    if len(set(codes[0])) > 1 or len(set(codes[1])) > 1:
        assert ami(found) == pytest.approx(reference_of_sets.ami(*codes), abs=1e-9)


def test_chance_is_zero_for_ami_alone():
    """Why AMI is there: NMI of a random clustering into many clusters is far from 0."""
    rng = np.random.default_rng(0)
    found = Clustering(np.arange(400) % 100, rng.integers(0, 100, 400))
    assert abs(ami(found)) < 0.05
    assert nmi(found) > 0.5


def test_clusters_are_those_of_all_items():
    """Separate groups are found, of more items than Faiss would sample, whatever the labels' values."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1], 700)
    x = np.array([[0.0, 1.0], [1.0, 0.0]])[codes] + 0.01 * rng.standard_normal((1400, 2))
    found = cluster(x.astype(np.float32), codes * 2**62)
    assert nmi(found) == 1.0
    assert found.classes.tolist() == codes.tolist()
    assert cluster(np.eye(5, dtype=np.float32), np.arange(5)).clusters.tolist() != [0] * 5


# -- the space


def test_spaces_by_hand():
    """Orthogonal axes used alike, two antipodes, one axis."""
    axes, labels = np.repeat(np.eye(4), 2, axis=0), np.repeat(np.arange(4), 2)
    found = evaluate(
        axes, labels, metrics=("alignment", "uniformity", "rho_spectrum", "pcf@0.9", "intra_inter")
    )
    assert found["alignment"] == pytest.approx(0, abs=1e-7)
    assert found["uniformity"] == pytest.approx(math.log((8 + 48 * math.exp(-4)) / 56), abs=1e-7)
    assert found["rho_spectrum"] == pytest.approx(0, abs=1e-7)
    assert found["pcf@0.9"] == 3 / 4  # four points in a space of three dimensions
    assert found["intra_inter"] == pytest.approx(0, abs=1e-6)
    poles = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    found = evaluate(poles, [0, 1, 0, 1], metrics=("alignment", "uniformity", "rho_spectrum"))
    assert found["alignment"] == pytest.approx(4, abs=1e-6)
    assert found["uniformity"] == pytest.approx(math.log((1 + 2 * math.exp(-8)) / 3), abs=1e-6)
    assert 6 < found["rho_spectrum"] < 16


# -- tables


def test_per_class_values():
    x, labels = sample(100, 12)
    labels[:3] = [100, 200, 300]  # lone
    result = evaluate_detailed(x, labels, metrics=("recall@1", "map@r"))
    table = result.per_class()
    assert list(table) == ["label", "queries", "recall@1", "map@r"]
    assert table["label"].tolist() == list(range(12))
    for i, label in enumerate(table["label"]):
        own = labels == label
        assert table["queries"][i] == own.sum()
        assert table["map@r"][i] == pytest.approx(result.per_query["map@r"][own].mean())


def test_metrics_of_the_whole_set_know_no_average():
    """They are neither per query nor per class: the same under both, and absent from the tables."""
    x, labels = sample(80, 6)
    micro, macro = (
        evaluate_detailed(x, labels, metrics=("auc", "nmi", "recall@1"), average=average)
        for average in ("micro", "macro")
    )
    assert list(micro.metrics) == ["auc", "nmi", "recall@1"]
    assert micro.metrics["auc"] == macro.metrics["auc"]
    assert list(micro.per_query) == ["recall@1"]


@pytest.mark.parametrize("ids", [None, [f"image_{i}.jpg" for i in range(40)]])
def test_table_of_queries_is_saved_whole(ids, tmp_path):
    """What paired statistics need: who each row is, and one column per metric, under its own name."""
    x, labels = sample(40, 9)
    metrics = ("recall@1", "legacy/map_c", "map@r")
    result = evaluate_detailed(x, labels, query_ids=ids, metrics=metrics)
    path = result.save_per_query(tmp_path / "queries.npz")
    assert list(tmp_path.iterdir()) == [path]
    with np.load(path, allow_pickle=False) as saved:
        assert sorted(saved) == sorted(["id", "label", "relevant", *metrics])
        assert saved["id"].tolist() == (ids or list(range(40)))
        assert saved["label"].tolist() == labels.tolist()
        for metric in metrics:
            np.testing.assert_array_equal(saved[metric], result.per_query[metric])
    with pytest.raises(ValueError, match=r"end its name in \.npz"):
        result.save_per_query(tmp_path / "queries.csv")
