"""What evaluate accepts, what it refuses with which words, and what it leaves alone."""

import random

import faiss
import numpy as np
import pytest
import torch

from dml.evaluation import Result, evaluate, evaluate_detailed

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 8)).astype(np.float32)
LABELS = RNG.integers(0, 7, 40)
EXPECTED = evaluate(X, LABELS)


def test_default_metrics():
    """The names and their order are what tables and records show."""
    assert list(EXPECTED) == [
        "recall@1",
        "recall@2",
        "recall@4",
        "recall@8",
        "map@r",
        "r_precision",
    ]
    assert all(isinstance(value, float) for value in EXPECTED.values())


@pytest.mark.parametrize(
    "x",
    [
        torch.from_numpy(X),
        torch.from_numpy(X).requires_grad_(),
        torch.from_numpy(X).double(),
        torch.from_numpy(np.asfortranarray(X)),
        torch.from_numpy(np.repeat(X, 2, axis=0))[::2],
        X.astype(np.float64),
        X.astype(np.longdouble),
        X.astype(">f4"),
        X[::-1][::-1],
        np.broadcast_to(X, X.shape),
        X.tolist(),
    ],
    ids=range(11),
)
def test_any_array_of_real_numbers(x):
    """Type, order in memory, byte order and gradients do not matter."""
    assert evaluate(x, LABELS) == EXPECTED


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.uint64, ">i4"])
def test_any_integer_labels(dtype):
    assert evaluate(X, LABELS.astype(dtype)) == EXPECTED
    assert evaluate(X, torch.from_numpy(LABELS)) == EXPECTED
    assert evaluate(X, LABELS.tolist()) == EXPECTED


def test_integer_embeddings():
    x = RNG.integers(0, 5, (30, 4))
    labels = RNG.integers(0, 5, 30)
    assert evaluate(x, labels) == evaluate(x.astype(np.float32), labels)


def test_ids_of_any_kind():
    """Numbers up to 2^64 or strings; uint64 and int64 compare as whole numbers."""
    base = 2**62 + 1
    names = np.array([f"image_{i}.jpg" for i in range(40)])
    for query_ids, gallery_ids in (
        (base + np.arange(40), (base + np.arange(40)).astype(np.uint64)),
        (names, names),
        (torch.arange(40), range(40)),
    ):
        found = evaluate(X, LABELS, X, LABELS, query_ids=query_ids, gallery_ids=gallery_ids)
        assert found == EXPECTED
    assert evaluate(X, LABELS, query_ids=names) == EXPECTED


def test_one_metric_as_a_string_and_repeated_names():
    assert evaluate(X, LABELS, metrics="recall@1") == {"recall@1": EXPECTED["recall@1"]}
    assert list(evaluate(X, LABELS, metrics=["map@r", "map@r"])) == ["map@r"]


def test_result():
    result = evaluate_detailed(X, LABELS, X[:9], LABELS[:9], similarity="euclidean")
    assert isinstance(result, Result)
    assert (result.num_queries, result.gallery_size) == (40, 9)
    assert result.relevant.tolist() == [(LABELS[:9] == label).sum() for label in LABELS]
    assert result.lone_queries == (result.relevant == 0).sum()
    for name, value in result.metrics.items():
        assert value == pytest.approx(np.nanmean(result.per_query[name]))
    for words in ("40 queries", "gallery of 9", "0 excluded", "euclidean", "ties"):
        assert words in result.protocol


@pytest.mark.parametrize("metrics", [["recall@1"], ["auc"], ["map@r", "auc", "nmi", "alignment"]])
def test_progress_rises_to_one(metrics):
    for memory in (1 << 30, 1 << 12):
        seen = []
        evaluate(X, LABELS, metrics=metrics, progress=seen.append, memory=memory)
        assert seen == sorted(seen)
        assert seen[-1] == 1.0


def test_two_sets_may_lack_each_others_classes():
    found = evaluate_detailed(X[:3], [1, 2, 3], X[3:8], [3, 3, 9, 9, 1], metrics=["recall@1000"])
    assert found.relevant.tolist() == [1, 0, 2]
    assert found.metrics == {"recall@1000": 1.0}


def bad(x, row, value):
    x = x.copy()
    x[row] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((bad(X, 3, np.nan), LABELS), {}, "query holds NaN.* in row 3"),
        ((bad(X, [2, 7], np.inf), LABELS), {}, "rows 2, 7"),
        ((bad(X.astype(float), 5, 1e39), LABELS), {}, "beyond float32 in row 5"),
        ((bad(X, slice(0, 9), np.nan), LABELS), {}, "0, 1, 2, 3, 4 and 4 more"),
        ((X, LABELS, bad(X, 1, np.nan), LABELS), {}, "gallery holds NaN.* row 1"),
        ((X, LABELS[:-1]), {}, "query_labels has 39 entries for 40 rows of query"),
        ((X, LABELS, X[:5], LABELS), {}, "gallery_labels has 40 entries for 5 rows of gallery"),
        ((X, LABELS, X[:, :5], LABELS), {}, "8 dimensions and gallery 5"),
        ((X[0], LABELS), {}, r"shape \[8\]; expected \[items, dimensions\]"),
        ((X[:0], LABELS[:0]), {}, "query is empty"),
        ((X[:, :0], LABELS), {}, "query is empty"),
        ((X, LABELS, X[:0], LABELS[:0]), {}, "gallery is empty"),
        ((X + 1j, LABELS), {}, "complex64, not real numbers"),
        ((X > 0, LABELS), {}, "bool, not real numbers"),
        ((torch.from_numpy(X) > 0, LABELS), {}, "bool, not real numbers"),
        ((X, LABELS.astype(float)), {}, "query_labels holds float64; labels must be integers"),
        ((X, LABELS > 3), {}, "query_labels holds bool"),
        ((X, LABELS[:, None]), {}, "expected one dimension"),
        ((X, LABELS.astype(np.uint64) + np.uint64(2**63)), {}, "beyond int64"),
        ((X, LABELS, X), {}, "gallery is given without gallery_labels"),
        ((X, LABELS, None, LABELS), {}, "gallery_labels is given without gallery"),
        ((X, LABELS), {"gallery_ids": range(40)}, "gallery_ids is given without gallery"),
        ((X, LABELS, X, LABELS), {"query_ids": range(40)}, "gallery_ids is missing"),
        ((X, LABELS, X, LABELS), {"gallery_ids": range(40)}, "query_ids is missing"),
        (
            (X, LABELS),
            {"query_ids": [1] * 40},
            "query_ids must be unique: 39 repeat, for example 1",
        ),
        ((X, LABELS), {"query_ids": np.arange(40) / 2}, "ids must be integers or strings"),
        ((X, LABELS), {"query_ids": range(39)}, "query_ids has 39 entries for 40"),
        (
            (X, LABELS, X, LABELS),
            {"query_ids": range(40), "gallery_ids": [str(i) for i in range(40)]},
            "query_ids hold int64 and gallery_ids <U2",
        ),
        ((X, np.arange(40)), {}, "none of the 40 queries has a positive"),
        ((X[:1], [0]), {}, "none of the 1 queries has a positive"),
        ((X, LABELS, X, LABELS + 100), {}, "numbered alike"),
        ((X, LABELS), {"metrics": ["recall@1", "recal@2"]}, "unknown metric 'recal@2'.*recall@k"),
        ((X, LABELS), {"metrics": ()}, "metrics is empty"),
        ((X, LABELS), {"backend": "annoy"}, "backend='annoy' is not one of auto, faiss, torch"),
        ((X, LABELS), {"similarity": "l2"}, "not one of cosine, dot, euclidean"),
        ((X, LABELS), {"average": "weighted"}, "average='weighted' is not one of micro, macro"),
        ((X, LABELS), {"memory": 0}, "memory=0 must be a positive number of bytes"),
        ((X, LABELS * 0), {"metrics": "auc"}, "need pairs of different classes"),
        ((X, LABELS * 0), {"metrics": "intra_inter"}, "needs queries of two classes"),
    ],
)
def test_refuses(arguments, options, message):
    """Each names the input and what is wrong with it."""
    with pytest.raises(ValueError, match=message):
        evaluate(*arguments, **options)


def test_leaves_the_world_alone():
    """Random states, threads, gradients and precision are the caller's."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
    torch.manual_seed(1)
    x = torch.from_numpy(X).requires_grad_()

    def state():
        return (
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            faiss.omp_get_max_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            x.grad,
        )

    before, values = state(), x.detach().clone()
    for backend in ("faiss", "torch"):
        evaluate(x, LABELS, backend=backend)
    evaluate(x, LABELS, metrics=("auc", "nmi", "uniformity", "rho_spectrum"))
    assert state() == before
    assert torch.equal(x.detach(), values)


def test_leaves_the_precision_alone_and_does_not_obey_it():
    """Lower precision for training, autocast, other defaults: the same numbers."""
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            torch.set_default_dtype(torch.float64)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                for backend in ("faiss", "torch"):
                    assert evaluate(X, LABELS, backend=backend) == EXPECTED
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before)


def test_inside_other_contexts():
    with torch.no_grad():
        assert evaluate(X, LABELS) == EXPECTED
    with torch.inference_mode():
        assert evaluate(torch.from_numpy(X).clone(), LABELS) == EXPECTED
