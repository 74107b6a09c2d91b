"""Metrics as functions of ranks: closed forms against listing every order of tied items.

The hand table that eval_checks.hand_table asserts: six points on a line, 0 1 2.5 3.2 10 30, of
classes a a b b a c. Neighbours of each, nearest first:

    0   (a)   1a  2.5b  3.2b  10a  30c     R = 2, hits at 1 and 4
    1   (a)   0a  2.5b  3.2b  10a  30c     R = 2, hits at 1 and 4
    2.5 (b)   3.2b 1a   0a    10a  30c     R = 1, hit at 1
    3.2 (b)   2.5b 1a   0a    10a  30c     R = 1, hit at 1
    10  (a)   3.2b 2.5b 1a    0a   30c     R = 2, hits at 3 and 4
    30  (c)   no positive
"""

import math
from itertools import permutations

import numpy as np
import pytest
from eval_checks import reference

from dml.evaluation.names import FAMILIES, is_fraction, parse
from dml.evaluation.ranks import Ranks

NAMES = [name.replace("@k", f"@{k}") for name in FAMILIES["ranks"] for k in (1, 2, 5, 40)]


def ranks_of(queries):
    """Ranks of queries given as tie groups [(items, positives), ...], best first."""
    start, rows, relevant, sizes = [], [], [], []
    for groups in queries:
        start.append(len(rows))
        above = before = 0
        for size, hits in groups:
            if hits:
                rows.append((above, size, hits, before))
            above += size
            before += hits
        relevant.append(before)
        sizes.append(above)
    above, tied, hits, before = np.array(rows).T
    return Ranks(np.array(start), above, tied, hits, before, np.array(relevant), np.array(sizes))


def drawn_groups(rng, most):
    while True:
        sizes = rng.integers(1, most + 1, rng.integers(1, 6))
        groups = [(int(size), int(rng.integers(0, size + 1))) for size in sizes]
        if any(hits for _, hits in groups):
            return groups


def test_the_reference_lists_every_order():
    """Arrangements of positives and permutations of items have the same mean."""
    groups = [(3, 1), (1, 0), (4, 2)]
    items = [[1, 0, 0], [0], [1, 1, 0, 0]]
    for metric in NAMES:
        orders = [
            reference.value_of(metric, [*a, *items[1], *b], 3)
            for a in permutations(items[0])
            for b in permutations(items[2])
        ]
        expected = max(orders) if "optimistic" in metric else np.mean(orders)
        np.testing.assert_allclose(expected, reference.by_listing(metric, groups), rtol=1e-13)


@pytest.mark.parametrize("metric", sorted(set(NAMES)))
def test_closed_form_equals_listing(metric):
    """Groups small enough to list, cut by k and R at every place."""
    rng = np.random.default_rng(0)
    queries = [
        g for g in (drawn_groups(rng, 6) for _ in range(120)) if reference.arrangements(g) < 500
    ]
    assert len(queries) > 60
    function = parse(metric).compute
    listed = [reference.by_listing(metric, groups) for groups in queries]
    np.testing.assert_allclose(function(ranks_of(queries)), listed, rtol=1e-12, atol=1e-14)
    by_position = [reference.by_position(metric, groups) for groups in queries]
    np.testing.assert_allclose(by_position, listed, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("metric", sorted(set(NAMES)))
def test_closed_form_for_large_groups(metric):
    """Groups of hundreds: products and harmonic sums stay accurate."""
    rng = np.random.default_rng(1)
    queries = [drawn_groups(rng, 300) for _ in range(10)] + [[(900, 1)], [(900, 899)], [(1, 1)]]
    function = parse(metric).compute
    expected = [reference.by_position(metric, groups) for groups in queries]
    np.testing.assert_allclose(function(ranks_of(queries)), expected, rtol=1e-11, atol=1e-14)


def test_k_beyond_the_gallery():
    """Positions past the end are empty: misses for precision, nothing new for the others."""
    ranks = ranks_of([[(2, 1), (3, 1)]])
    value = {name: float(parse(name).compute(ranks)[0]) for name in NAMES}
    assert value["recall@40"] == 1
    assert value["precision@40"] == 2 / 40
    assert value["map@40"] == pytest.approx(value["map"], rel=1e-14)
    assert value["ndcg@40"] == pytest.approx(value["ndcg"], rel=1e-14)


def test_collapse_of_a_large_class_needs_no_large_numbers():
    """C(T, m) overflows here; the product of quotients does not."""
    ranks = ranks_of([[(60_000, 5_999)]])
    assert parse("recall@1").compute(ranks)[0] == pytest.approx(5_999 / 60_000, rel=1e-14)
    assert parse("recall@1000").compute(ranks)[0] == pytest.approx(1.0)
    log = sum(math.log1p(-5_999 / (60_000 - i)) for i in range(20))
    assert 1 - parse("recall@20").compute(ranks)[0] == pytest.approx(math.exp(log), rel=1e-11)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("recal@1", "recall@k"),
        ("Recall@1", "recall@k"),
        ("recall", "recall@k"),
        ("recall@0", "recall@k"),
        ("recall@k", "recall@k"),
        ("recall@01", "recall@k"),
        ("precison@5", "precision@k"),
        ("map@R", "map@r"),
        ("r-precision", "r_precision"),
        ("mrr@3", "mrr"),
        ("auc@3", "auc"),
        ("fnmr@fmr=2", "fnmr@fmr=x"),
        ("fnmr@fmr", "fnmr@fmr=x"),
        ("fnmr@fmr=0.0.1", "fnmr@fmr=x"),
        ("fnmr@fmr=0.0", "fnmr@fmr=x"),
        ("fnmr@fmr=15e-1", "fnmr@fmr=x"),
        ("pcf@1", "pcf@x"),
        ("uniformty", "uniformity"),
        ("rho-spectrum", "rho_spectrum"),
        ("map_c", "legacy/map_c"),
        ("legacy/map@10-oml", "legacy/map@k_oml"),
        ("legacy/recall_optimistic", "legacy/recall_optimistic@k"),
        ("", "recall@k"),
        (3, "recall@k"),
    ],
)
def test_unknown_metric_names_the_nearest(name, shown):
    with pytest.raises(ValueError, match="unknown metric") as error:
        parse(name)
    assert shown in str(error.value)


@pytest.mark.parametrize("name", ["fnmr@fmr=1e-3", "fnmr@fmr=0.001", "fnmr@fmr=.001", "pcf@2.5e-1"])
def test_numbers_in_names(name):
    assert parse(name).key == name.split("@")[0] + ("@fmr=x" if "fmr" in name else "@x")


def test_what_can_choose_a_checkpoint_and_what_is_a_fraction():
    """A checkpoint is chosen by the largest value: nothing that is better when small may choose."""
    for name in ("recall@1", "map@r", "auc", "nmi", "ami", "minp"):
        assert parse(name).is_aim
    for name in ("fnmr@fmr=1e-3", "alignment", "uniformity", "rho_spectrum", "pcf@0.9"):
        assert not parse(name).is_aim
    assert not is_fraction("uniformity")
    assert not is_fraction("ami")
    assert is_fraction("auc")
