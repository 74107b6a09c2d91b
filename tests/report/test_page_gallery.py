"""What is shown is what evaluation counted: neighbours, margins and confusions against plain loops."""

import numpy as np
import pytest

from dml.embedding_files import Embedded
from dml.evaluation import evaluate_detailed
from dml.report import embedding_map, gallery

SIMILARITIES = ("cosine", "dot", "euclidean")


def made(
    similarity: str = "cosine", n: int = 60, apart: bool = False, classes: int = 7
) -> Embedded:
    rng = np.random.default_rng(3)
    return Embedded(
        embeddings=rng.normal(size=(n, 5)).astype(np.float32)
        * rng.uniform(0.5, 2, (n, 1)).astype(np.float32),
        labels=rng.integers(0, classes, n),
        ids=np.arange(n),
        is_query=np.arange(n) % 3 == 0 if apart else None,
        similarity=similarity,
    )


def near(embedded: Embedded, i: int, j: int) -> float:
    a, b = embedded.embeddings[[i, j]].astype(np.float64)
    if embedded.similarity == "euclidean":
        return -float(np.linalg.norm(a - b))
    scale = np.linalg.norm(a) * np.linalg.norm(b) if embedded.similarity == "cosine" else 1.0
    return float(a @ b) / float(scale)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_neighbours_are_those_of_a_plain_loop(similarity, apart, monkeypatch):
    monkeypatch.setattr(gallery, "CHUNK", 500)  # several chunks
    embedded = made(similarity, apart=apart)
    found = gallery.neighbours(embedded, 4)
    n = len(embedded)
    queries = [i for i in range(n) if not apart or embedded.is_query[i]]
    assert found.query.tolist() == queries
    for row, i in enumerate(queries):
        others = [j for j in range(n) if j != i and not (apart and embedded.is_query[j])]
        others.sort(key=lambda j: -near(embedded, i, j))
        assert found.nearest[row].tolist() == others[:4]
        right = [j for j in others if embedded.labels[j] == embedded.labels[i]]
        wrong = [j for j in others if embedded.labels[j] != embedded.labels[i]]
        assert found.right[row] == (right[0] if right else -1)
        assert found.rank[row] == (others.index(right[0]) + 1 if right else 0)
        assert found.wrong[row] == wrong[0]
        if right:
            margin = near(embedded, i, right[0]) - near(embedded, i, wrong[0])
            assert found.margin[row] == pytest.approx(margin, abs=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_right_nearest_image_is_a_hit_of_the_evaluation(similarity):
    embedded = made(similarity)
    found = gallery.neighbours(embedded, 1)
    hits = embedded.labels[found.nearest[:, 0]] == embedded.labels
    result = evaluate_detailed(
        embedded.embeddings, embedded.labels, metrics=("recall@1",), similarity=similarity
    )
    counted = result.relevant > 0
    assert np.array_equal(hits[counted], result.per_query["recall@1"][counted] == 1)
    assert np.array_equal(hits[counted], found.margin[counted] > 0)


def test_queries_without_an_image_of_their_class_are_never_shown():
    embedded = made()
    embedded.labels[5] = 99
    found = gallery.neighbours(embedded, 3)
    assert found.right[5] == -1
    assert np.isnan(found.margin[5])
    assert 5 not in gallery.random_queries(found, 60, seed=0)
    for best in (True, False):
        assert 5 not in gallery.extreme_queries(found, embedded.labels, 60, best)
    assert all(
        99 not in pair.labels or 5 not in pair.examples
        for pair in gallery.confusions(found, embedded.labels, 99, 99)
    )


def test_the_extremes_are_the_extremes_one_of_a_class():
    embedded = made()
    found = gallery.neighbours(embedded, 3)
    best = gallery.extreme_queries(found, embedded.labels, 4, best=True)
    worst = gallery.extreme_queries(found, embedded.labels, 4, best=False)
    assert best[0] == np.nanargmax(found.margin)
    assert worst[0] == np.nanargmin(found.margin)
    for rows, sign in ((best, -1), (worst, 1)):
        assert len(set(embedded.labels[found.query[rows]])) == len(rows) == 4
        assert np.all(np.diff(sign * found.margin[rows]) >= 0)


def test_confusions_count_both_ways():
    """Class 0's images find class 1 twice, class 1's find class 0 once, class 2 is apart."""
    angles = np.radians([0, 1, 90, 2.5, 0.4, 91, 180, 181])
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    points = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    found = gallery.neighbours(Embedded(points, labels, np.arange(8)), 1)
    wrong = [
        (labels[i], labels[j]) for i, j in enumerate(found.nearest[:, 0]) if labels[i] != labels[j]
    ]
    (pair,) = gallery.confusions(found, labels, 5, examples=2)
    told = dict(zip(pair.labels, pair.wrong, strict=True))
    assert told == {0: wrong.count((0, 1)), 1: wrong.count((1, 0))}
    assert sum(pair.wrong) == len(wrong) > 1
    assert pair.queries == (3, 3)
    assert len(pair.examples) == 2
    assert gallery.most_taken_for(found, labels) == {
        own: (other, wrong.count((own, other))) for own, other in set(wrong)
    }


def test_no_confusion_and_a_single_class():
    labels = np.zeros(6, dtype=np.int64)
    embedded = Embedded(made(n=6).embeddings, labels, np.arange(6))
    found = gallery.neighbours(embedded, 9)
    assert found.nearest.shape == (6, 5)
    assert np.isnan(found.margin).all()
    assert gallery.confusions(found, labels, 3, 3) == []
    assert gallery.most_taken_for(found, labels) == {}
    assert len(gallery.extreme_queries(found, labels, 3, best=True)) == 0


def test_a_map_shows_whole_classes_and_no_more_than_it_may():
    labels = np.repeat(np.arange(100), 7)
    shown = embedding_map.sample(labels, seed=1, limit=200)
    assert len(shown) == 200
    assert np.array_equal(shown, np.unique(shown))
    sizes = np.bincount(labels[shown])
    assert (sizes[sizes > 0] == 7).sum() >= 28
    assert np.array_equal(shown, embedding_map.sample(labels, seed=1, limit=200))
    assert not np.array_equal(shown, embedding_map.sample(labels, seed=2, limit=200))
    few = np.repeat(np.arange(4), 1000)
    assert np.bincount(few[embedding_map.sample(few, seed=0, limit=200)]).tolist() == [50] * 4
    assert len(embedding_map.sample(few, seed=0, limit=4000)) == 4000


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_pca_is_that_of_a_singular_value_decomposition(similarity):
    embedded = made(similarity)
    vectors = embedded.embeddings.astype(np.float64)
    if similarity == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors -= vectors.mean(0)
    u, s, _ = np.linalg.svd(vectors, full_matrices=False)
    found = embedding_map.pca(embedded, np.arange(10, 20))
    assert np.abs(found.points) == pytest.approx(np.abs(u * s)[10:20, :2], abs=1e-9)
    assert f"{(s[:2] ** 2).sum() / (s**2).sum():.0%} of it" in found.told


@pytest.mark.parametrize("vectors", [np.ones((5, 3)), np.arange(5.0)[:, None]])
def test_pca_of_embeddings_that_hardly_vary(vectors):
    embedded = Embedded(
        vectors.astype(np.float32), np.zeros(5, np.int64), np.arange(5), similarity="dot"
    )
    points = embedding_map.pca(embedded, np.arange(5)).points
    assert points.shape == (5, 2)
    assert np.isfinite(points).all()
