"""What must hold of an evaluation, as functions of the package that does it.

The tests run every check on `dml.evaluation`; the mutants in test_eval_mutants.py are copies of it
with one mistake, and the check named for each must fail.
"""

import importlib
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch


def _reference(name):
    path = Path(__file__).parents[1] / "reference" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"reference_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference, reference_of_sets = _reference("metrics"), _reference("metrics_of_sets")

ALL = (
    "recall@1",
    "recall@3",
    "recall@1000",
    "cmc@2",
    "precision@1",
    "precision@5",
    "map@r",
    "r_precision",
    "map",
    "map@3",
    "map_cut@3",
    "mrr",
    "minp",
    "ndcg",
    "ndcg@4",
    "legacy/map_c",
    "legacy/map@4_rdml",
    "legacy/map@r@2_pml",
    "legacy/map@3_oml",
    "legacy/precision@3_oml",
    "legacy/recall_optimistic@2",
    "legacy/recall_lone_missed@2",
)
SETS = (
    "auc",
    "fnmr@fmr=0.1",
    "fnmr@fmr=2e-2",
    "alignment",
    "uniformity",
    "rho_spectrum",
    "pcf@0.9",
    "intra_inter",
)
BACKENDS = ("torch", "faiss")


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def agree(package, query, labels, metrics=ALL, tolerance=1e-9, memory=1 << 30, **options):
    """Both backends equal the reference, means and single queries."""
    means, singles = reference.evaluate(query, labels, metrics=metrics, **options)
    for backend in BACKENDS:
        result = package.evaluate_detailed(
            query, labels, metrics=metrics, backend=backend, memory=memory, **options
        )
        for metric in metrics:
            expected = [math.nan if v is None else v for v in singles[metric]]
            np.testing.assert_allclose(
                result.per_query[metric], expected, atol=tolerance, rtol=0, err_msg=metric
            )
            assert abs(result.metrics[metric] - means[metric]) <= tolerance, metric


def expected_of_sets(query, labels, metrics, similarity="cosine", **gallery):
    """Metric -> value, or None where it is not defined."""
    own = "gallery" not in gallery
    items = query if own else gallery["gallery"]
    item_labels = labels if own else gallery["gallery_labels"]
    ids = (range(len(query)), range(len(query))) if own else (None, None)
    ids = (gallery.get("query_ids", ids[0]), gallery.get("gallery_ids", ids[1]))
    pairs = reference_of_sets.pairs_of(labels, item_labels, *ids)
    table = reference.similarities(query, items, similarity)
    same = [table[i][j] for i, j, alike in pairs if alike]
    different = [table[i][j] for i, j, alike in pairs if not alike]
    sizes = np.unique(labels, return_counts=True)[1]

    def value(metric):
        name, _, number = metric.replace("fmr=", "").partition("@")
        if name in ("auc", "fnmr"):
            function = getattr(reference_of_sets, name)
            return function(same, different, *([number] if number else [])) if different else None
        if name in ("alignment", "uniformity"):
            return getattr(reference_of_sets, name)(query, items, pairs)
        if name == "intra_inter":
            if len(sizes) < 2 or max(sizes) < 2:
                return None
            return reference_of_sets.intra_inter(query, labels)
        return getattr(reference_of_sets, name)(query, *([number] if number else []))

    return {metric: value(metric) for metric in metrics}


def agree_on_sets(package, query, labels, metrics=SETS, memory=1 << 30, tolerance=1e-6, **options):
    """Metrics of the whole set equal the reference, or are refused where they are not defined."""
    expected = expected_of_sets(query, labels, metrics, **options)
    for metric in metrics:
        if expected[metric] is None:
            del expected[metric]
            with pytest.raises(ValueError, match="need"):
                package.evaluate(query, labels, metrics=metric, memory=memory, **options)
    found = package.evaluate(query, labels, metrics=tuple(expected), memory=memory, **options)
    for metric, value in expected.items():
        assert abs(found[metric] - value) <= tolerance, (metric, found, value)


# -- self


def self_is_excluded_by_id(package):
    """A duplicate of the query must not be dropped in its place (PML's own example)."""
    x = np.array([[10.0], [10], [20], [20]])
    for backend in BACKENDS:
        found = package.evaluate(x, [1, 0, 1, 0], similarity="euclidean", backend=backend)
        assert found["recall@1"] == 0
        assert found["map@r"] == 0


def self_is_excluded_wherever_it_sits(package):
    """With ids, a gallery in another order that holds some of the queries changes nothing."""
    rng = np.random.default_rng(5)
    x, labels = rng.standard_normal((60, 6)), rng.integers(0, 9, 60)
    order = rng.permutation(60)
    for backend in BACKENDS:
        whole = package.evaluate(x, labels, metrics=ALL, backend=backend)
        moved = package.evaluate(
            x,
            labels,
            x[order],
            labels[order],
            query_ids=np.arange(60) + 7,
            gallery_ids=order + 7,
            metrics=ALL,
            backend=backend,
        )
        assert moved == whole


def self_under_another_label_is_excluded(package):
    """The id decides, not the label: the query itself is no negative either."""
    query, gallery = np.array([[0.0]]), np.array([[0.0], [1.0]])
    for backend in BACKENDS:
        found = package.evaluate(
            query,
            [1],
            gallery,
            [2, 1],
            query_ids=[5],
            gallery_ids=[5, 6],
            similarity="euclidean",
            backend=backend,
        )
        assert found["recall@1"] == 1


def ids_absent_from_the_gallery_exclude_nothing(package):
    query, gallery = np.array([[0.0]]), np.array([[0.1], [0.2], [0.3]])
    found = package.evaluate(
        query, [1], gallery, [2, 1, 1], query_ids=[9], gallery_ids=[4, 5, 6], similarity="euclidean"
    )
    assert found["recall@1"] == 0
    assert found["r_precision"] == 0.5


# -- ties


def collapse_scores_chance(package):
    """Constant embeddings, sorted by class: the metrics of a random order, not 100 %."""
    sizes = np.array([2, 3, 5, 10, 30])
    labels = np.repeat(np.arange(5), sizes)
    n = len(labels)
    for similarity in ("cosine", "dot", "euclidean"):
        for backend in BACKENDS:
            found = package.evaluate_detailed(
                np.full((n, 7), 0.3),
                labels,
                similarity=similarity,
                backend=backend,
                metrics=("recall@1", "recall@4", "precision@7", "r_precision", "map@r"),
            )
            hits = sizes[labels] - 1
            chance = hits / (n - 1)
            per_query = found.per_query
            np.testing.assert_allclose(per_query["recall@1"], chance, rtol=1e-14)
            np.testing.assert_allclose(per_query["precision@7"], chance, rtol=1e-14)
            np.testing.assert_allclose(per_query["r_precision"], chance, rtol=1e-14)
            drawn = [1 - math.comb(n - 1 - h, 4) / math.comb(n - 1, 4) for h in hits]
            np.testing.assert_allclose(per_query["recall@4"], drawn, rtol=1e-13)


def collapse_shows_in_the_whole_set(package):
    """Constant embeddings: pairs at chance, all refused at a strict threshold, a point in space."""
    labels = np.repeat(np.arange(5), [2, 3, 5, 10, 30])
    expected = {
        "auc": 0.5,
        "fnmr@fmr=0.1": 1.0,
        "alignment": 0.0,
        "uniformity": 0.0,
        "pcf@0.5": 0.0,
        "intra_inter": 0.0,
        "nmi": 0.0,
    }
    for similarity in ("cosine", "dot", "euclidean"):
        found = package.evaluate(
            np.full((50, 7), 0.3), labels, metrics=tuple(expected), similarity=similarity
        )
        for metric, value in expected.items():
            assert abs(found[metric] - value) < 1e-6, metric


def threshold_accepts_at_most_its_share(package):
    """One query at 0, positives at 1, 3 and 5, ten negatives at 2, 4 ... 20."""
    gallery = np.array([1.0, 3, 5, *range(2, 21, 2)])[:, None]
    labels = [1] * 3 + [2] * 10
    metrics = ("fnmr@fmr=0.05", "fnmr@fmr=0.1", "fnmr@fmr=0.19", "fnmr@fmr=0.2", "auc")
    found = package.evaluate(
        np.zeros((1, 1)), [1], gallery, labels, metrics=metrics, similarity="euclidean"
    )
    assert list(found.values()) == [2 / 3, 1 / 3, 1 / 3, 0.0, 1 - 3 / 30]


def alike_vectors_tie(package):
    """Outputs of a collapsed model that differ in length, or by float32's rounding: cosine 1, chance."""
    rng = np.random.default_rng(6)
    direction = rng.standard_normal((1, 512)).astype(np.float32)
    labels = np.arange(150) % 30
    for x in (
        direction * 10.0 ** rng.uniform(-3, 3, (150, 1)),
        direction * (1 + 1e-7 * rng.standard_normal((150, 512))),
        1 + 1e-6 * rng.standard_normal((150, 64)),
        np.ones((150, 512)) * rng.uniform(1, 2, (150, 1)),
    ):
        for backend in BACKENDS:
            found = package.evaluate(x.astype(np.float32), labels, backend=backend)
            assert abs(found["recall@1"] - 4 / 149) < 1e-12


def order_of_the_data_changes_nothing(package):
    """Duplicates within and across classes, shuffled: the same bits."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((12, 5))[rng.integers(0, 12, 80)]
    x[::7] += 1e-8 * rng.standard_normal((12, 5))
    labels = rng.integers(0, 9, 80)
    for backend in BACKENDS:
        first = package.evaluate(x, labels, metrics=ALL, backend=backend)
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(80)
            again = package.evaluate(x[order], labels[order], metrics=ALL, backend=backend)
            assert again == first
    metrics = ("auc", "fnmr@fmr=0.1", "nmi", "ami", "f1")
    first = package.evaluate(x, labels, metrics=metrics)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(80)
        assert package.evaluate(x[order], labels[order], metrics=metrics) == first


def ties_are_averaged_over_their_orders(package):
    """Few distinct points, many items on each: against every order, listed."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = rng.integers(-1, 2, (3, 2)).astype(float)[rng.integers(0, 3, 14)] + [3.0, 5.0]
        agree(package, x, rng.integers(0, 4, 14), similarity="euclidean", tolerance=1e-12)


def near_ties_are_told_apart(package):
    """Similarities closer than a float32 product can tell are still ordered exactly."""
    for seed, noise in enumerate((1e-8, 1e-7, 1e-6, 1e-5, 1e-4)):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((1, 200)) + noise * rng.standard_normal((36, 200))
        labels = rng.integers(0, 8, 36)
        for similarity in ("cosine", "dot", "euclidean"):
            agree(package, x, labels, similarity=similarity)


# -- definitions


def perfect_is_one_for_every_class_size(package):
    sizes = [*range(2, 40), 60, 97]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = unit(np.random.default_rng(0).standard_normal((len(sizes), 64)))
    noise = 1e-3 * np.random.default_rng(1).standard_normal((len(labels), 64))
    metrics = ("recall@1", "precision@1", "map@r", "r_precision", "map", "map@5", "mrr", "ndcg@5")
    metrics += ("cmc@1", "minp", "auc", "legacy/map@3_oml")
    for x in (centres[labels], centres[labels] + noise):
        for backend in BACKENDS:
            found = package.evaluate(x, labels, metrics=metrics, backend=backend)
            assert all(value == 1.0 for value in found.values()), found
        assert package.evaluate(x, labels, metrics=["fnmr@fmr=1e-9"]) == {"fnmr@fmr=1e-9": 0.0}


def hand_table(package):
    """Six points on a line; see the table in test_eval_definitions.py."""
    x = np.array([[0.0], [1.0], [2.5], [3.2], [10.0], [30.0]])
    labels = np.array([0, 0, 1, 1, 0, 2])
    expected = {
        "recall@1": [1, 1, 1, 1, 0],
        "recall@2": [1, 1, 1, 1, 0],
        "recall@3": [1, 1, 1, 1, 1],
        "precision@1": [1, 1, 1, 1, 0],
        "precision@4": [2 / 4, 2 / 4, 1 / 4, 1 / 4, 2 / 4],
        "precision@10": [2 / 10, 2 / 10, 1 / 10, 1 / 10, 2 / 10],
        "r_precision": [1 / 2, 1 / 2, 1, 1, 0],
        "map@r": [1 / 2, 1 / 2, 1, 1, 0],
        "map": [3 / 4, 3 / 4, 1, 1, 5 / 12],
        "mrr": [1, 1, 1, 1, 1 / 3],
        "minp": [2 / 4, 2 / 4, 1, 1, 2 / 4],
        "map@2": [1 / 2, 1 / 2, 1, 1, 0],
        "map_cut@2": [1 / 2, 1 / 2, 1, 1, 0],
        "map@1": [1, 1, 1, 1, 0],
        "map_cut@1": [1 / 2, 1 / 2, 1, 1, 0],
        "legacy/map_c": [1 / 3, 1 / 3, 1 / 2, 1 / 2, 1 / 9],
        "legacy/map@4_rdml": [1 / 2, 1 / 2, 1 / 2, 1 / 2, 5 / 18],
        "legacy/map@r@1_pml": [1 / 2, 1 / 2, 1, 1, 0],
        "legacy/map@3_oml": [1, 1, 1, 1, 1 / 3],
        "legacy/precision@4_oml": [1, 1, 1, 1, 1],
    }
    for backend in BACKENDS:
        found = package.evaluate_detailed(
            x, labels, similarity="euclidean", metrics=tuple(expected), backend=backend
        )
        for metric, values in expected.items():
            np.testing.assert_allclose(found.per_query[metric][:5], values, rtol=1e-15)
            assert math.isnan(found.per_query[metric][5])
            np.testing.assert_allclose(found.metrics[metric], np.mean(values), rtol=1e-15)


def lone_queries_are_left_out_and_counted(package):
    x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
    found = package.evaluate_detailed(x, [0, 0, 1, 1, 2], similarity="euclidean")
    assert found.metrics["recall@1"] == 1.0
    assert (found.lone_queries, found.num_queries) == (1, 5)
    assert math.isnan(found.per_query["recall@1"][4])
    assert found.relevant.tolist() == [1, 1, 1, 1, 0]


def mean_is_over_queries(package):
    """Nine queries right, three wrong in a class of their own: 9/12, not the mean over classes."""
    x = np.concatenate([np.arange(9) * 0.01, 100 * np.arange(1, 4), 100 * np.arange(1, 4) + 0.1])
    labels = np.array([0] * 9 + [1] * 3 + [2, 3, 4])
    found = package.evaluate(x[:, None], labels, similarity="euclidean")
    assert found["recall@1"] == 9 / 12


def macro_is_the_mean_over_classes(package):
    """The same points: 0.5, since one of the two classes that count is right."""
    x = np.concatenate([np.arange(9) * 0.01, 100 * np.arange(1, 4), 100 * np.arange(1, 4) + 0.1])
    labels = np.array([0] * 9 + [1] * 3 + [2, 3, 4])
    options = {"similarity": "euclidean", "metrics": ("recall@1", "map@r")}
    found = package.evaluate_detailed(x[:, None], labels, average="macro", **options)
    assert found.metrics["recall@1"] == 1 / 2
    table = found.per_class()
    assert table["label"].tolist() == [0, 1]
    assert table["queries"].tolist() == [9, 3]
    assert table["recall@1"].tolist() == [1.0, 0.0]
    assert found.metrics["map@r"] == table["map@r"].mean()


def counting_lone_queries_is_the_legacy_definition(package):
    x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
    metrics = ("recall@1", "legacy/recall_lone_missed@1")
    found = package.evaluate(x, [0, 0, 1, 1, 2], similarity="euclidean", metrics=metrics)
    assert list(found.values()) == [1.0, 4 / 5]


def whole_range_of_int64_labels(package):
    """Labels that collide as float32, as float64, and the ends of int64."""
    for start in (2**24, 2**53, 2**63 - 4, -(2**63)):
        labels = [start, start, start + 1, start + 1, start + 2, start + 3]
        x = np.array([[0.0], [3.0], [2.0], [7.0], [50.0], [90.0]])
        found = package.evaluate_detailed(x, np.array(labels), similarity="euclidean")
        assert found.lone_queries == 2
        assert found.metrics["recall@1"] == 0.0
        assert found.metrics["recall@2"] == 0.75


# -- numbers


def half_precision_becomes_float32_first(package):
    """bfloat16 input: its values as float32, normalised in full precision."""
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.standard_normal((50, 24))).bfloat16()
    labels = rng.integers(0, 9, 50)
    means, _ = reference.evaluate(x.float().numpy(), labels, metrics=ALL)
    for backend in BACKENDS:
        found = package.evaluate(x, labels, metrics=ALL, backend=backend)
        for metric in ALL:
            assert abs(found[metric] - means[metric]) < 1e-12


def common_offset_changes_no_distance(package):
    """Points on a lattice, far from the origin: float32 holds them, and |x|^2 - 2xy + |y|^2 would not."""
    rng = np.random.default_rng(3)
    x = rng.integers(-40, 41, (40, 1024)) / 256
    x[20:30] = x[10:20]
    labels = rng.integers(0, 8, 40)
    for backend in BACKENDS:
        options = {"similarity": "euclidean", "metrics": ALL, "backend": backend}
        assert package.evaluate(x + 2.0**15, labels, **options) == package.evaluate(
            x, labels, **options
        )


def similarity_is_the_one_asked_for(package):
    """Three similarities, three different nearest neighbours of the first point."""
    x = np.array([[1.0, 0.0], [1.0, 0.5], [9.0, 0.1], [20.0, 9.0]])
    for similarity, nearest in (("euclidean", 1), ("cosine", 2), ("dot", 3)):
        for backend in BACKENDS:
            labels = np.arange(1, 5)
            labels[nearest] = 1
            found = package.evaluate_detailed(
                x, labels, similarity=similarity, backend=backend, metrics=("recall@1",)
            )
            assert found.per_query["recall@1"][0] == 1.0
            assert found.similarity == similarity


def each_metric_alone_equals_all_together(package):
    """Ranks are followed no deeper than the metrics asked for need, and no less deep."""
    rng = np.random.default_rng(11)
    labels = rng.integers(0, 12, 150)
    x = rng.standard_normal((12, 4))[labels] + 1.5 * rng.standard_normal((150, 4))
    x[40:60] = x[60:80]
    for backend in BACKENDS:
        together = package.evaluate(x, labels, metrics=ALL, backend=backend)
        for metric in ALL:
            alone = package.evaluate(x, labels, metrics=[metric], backend=backend)
            assert alone == {metric: together[metric]}


def sums_are_exact(package):
    """In float64, whatever the order of the coordinates: the bits of an exactly rounded sum."""
    for similarity in ("cosine", "dot", "euclidean"):
        for seed, scale in enumerate((0, 6)):
            rng = np.random.default_rng(seed)
            x = rng.standard_normal((12, 300)) * 10.0 ** rng.uniform(-scale, scale, (12, 1))
            x[0] = 1.0
            rows = (torch.from_numpy(x), torch.arange(12))
            scorer = importlib.import_module(f"{package.__name__}.scores").Scorer
            values = scorer(rows, None, similarity).query.values.double()
            exact = [[math.fsum((a * b).tolist()) for b in values] for a in values]
            for order in (
                torch.arange(300),
                torch.arange(300).flip(0),
                torch.from_numpy(rng.permutation(300)),
            ):
                turned = values[:, order]
                assert (turned @ turned.T).tolist() == exact
                assert (turned[:, None] * turned[None]).sum(2).tolist() == exact


def drawn_cases_equal_the_reference(package, seeds=range(12)):
    """Every third in small chunks."""
    for seed in seeds:
        agree(package, memory=1 << (14 if seed % 3 == 0 else 30), **drawn_case(seed))


def drawn_sets_equal_the_reference(package, seeds=range(12)):
    """The same cases; in small chunks, few similarities of same pairs are counted at a time."""
    for seed in seeds:
        # Nearly collapsed: 1 - cosine has no digits left, in float64 either.
        undecided = ("pcf@0.9", "intra_inter") if seed % 8 == 6 else ()
        metrics = [metric for metric in SETS if metric not in undecided]
        memory = 1 << (14 if seed % 3 == 0 else 30)
        agree_on_sets(package, memory=memory, metrics=metrics, **drawn_case(seed))


def deep_positives_are_counted(package):
    """More classes than the short lists of neighbours hold, so that ranks lie beyond them."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((240, 3)).round(1)
    labels = rng.permutation(np.repeat(np.arange(80), 3))
    metrics = ("recall@1", "recall@30", "recall@100", "map@r", "r_precision")
    agree(package, x, labels, metrics=metrics)


CHECKS = [
    value
    for name, value in list(globals().items())
    if callable(value)
    and getattr(value, "__module__", "") == __name__
    and value.__code__.co_varnames[:1] == ("package",)
    and not name.startswith("agree")
]


def drawn_case(seed):
    """Arguments of an evaluation of an odd shape that has at least one positive."""
    rng = np.random.default_rng(seed)
    while True:
        n, m = (int(rng.integers(1, 36)) for _ in range(2))
        d = int(rng.choice([1, 2, 3, 8, 33]))
        classes = int(rng.integers(1, max(2, n)))
        few = rng.standard_normal((4, d))
        kind = seed % 8

        def draw(size, rng=rng, d=d, few=few, kind=kind):
            match kind:
                case 0:
                    return rng.standard_normal((size, d))
                case 1:  # a lattice: many equal distances
                    return rng.integers(-2, 3, (size, d)).astype(float)
                case 2:  # collapsed
                    return np.full((size, d), 3.7)
                case 3:  # four points
                    return few[rng.integers(0, 4, size)]
                case 4:  # far from the origin
                    return 100 + rng.standard_normal((size, d))
                case 5:  # lengths over 20 orders of magnitude
                    return rng.standard_normal((size, d)) * 10.0 ** rng.integers(-10, 10, (size, 1))
                case 6:  # nearly collapsed
                    return few[:1] + 1e-7 * rng.standard_normal((size, d))
                case _:  # rectified: zeros, whole rows of them too
                    return np.maximum(rng.standard_normal((size, d)) - 0.5, 0)

        case = {
            "query": draw(n),
            "labels": rng.integers(0, classes, n),
            "similarity": ("cosine", "dot", "euclidean")[rng.integers(3)],
        }
        labels = case["labels"]
        if rng.random() < 0.5:
            gallery, gallery_labels = draw(m), rng.integers(0, classes, m)
            case |= {"gallery": gallery, "gallery_labels": gallery_labels}
            shared = min(n, m) // 2
            gallery[:shared] = case["query"][:shared]  # duplicates across the sets
            if rng.random() < 0.5:
                case |= {
                    "query_ids": rng.permutation(70)[:n],
                    "gallery_ids": rng.permutation(70)[:m],
                }
            ids = case.get("query_ids", np.full(n, -1)), case.get("gallery_ids", np.full(m, -2))
            positive = labels[:, None] == gallery_labels[None]
            positive &= ids[0][:, None] != ids[1][None]
        else:
            positive = (labels[:, None] == labels[None]) & ~np.eye(n, dtype=bool)
        if positive.any():
            return case
