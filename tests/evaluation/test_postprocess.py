"""Post-processing and re-ranking equal the slow references, ties and duplicates included.

Ties are where implementations differ and where the order of the data leaks in, so the drawn cases have
many: few distinct vectors, repeated.
"""

import numpy as np
import pytest
import torch
from reference import postprocess as reference

from dml.evaluation import evaluate
from dml.evaluation.postprocess import (
    Sets,
    database_augmentation,
    pca,
    query_expansion,
    truncate,
)
from dml.evaluation.rerank import diffusion, k_reciprocal
from dml.evaluation.similarities import evaluate_similarities
from dml.evaluation.views import averaged, flip, multi_scale

METRICS = ("recall@1", "recall@3", "map@r", "r_precision", "mrr", "map")


def drawn(seed, apart):
    """Small sets on a coarse lattice: equal rows, equal cosines, rows of different lengths."""
    random = np.random.default_rng(seed)
    dim = int(random.integers(2, 5))
    query = random.integers(-2, 3, size=(int(random.integers(5, 16)), dim)).astype(np.float32)
    query[~query.any(1)] = 1
    query[random.integers(0, len(query))] = query[0]
    if not apart:
        return query, None, np.arange(len(query))
    gallery = random.integers(-2, 3, size=(int(random.integers(4, 16)), dim)).astype(np.float32)
    gallery[~gallery.any(1)] = -1
    gallery[-1] = query[0]
    return query, gallery, np.full(len(query), -1)


def sets_of(query, gallery, own, train=None, memory=1 << 28):
    gallery, train = (None if x is None else torch.from_numpy(x) for x in (gallery, train))
    return Sets(torch.from_numpy(query), gallery, own, train, memory)


CASES = [(seed, apart) for seed in range(8) for apart in (False, True)]


@pytest.mark.parametrize(("seed", "apart"), CASES)
@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_query_expansion(seed, apart, alpha):
    query, gallery, own = drawn(seed, apart)
    found = query_expansion(sets_of(query, gallery, own, memory=1), neighbours=3, alpha=alpha)
    items = query if gallery is None else gallery
    expected = reference.expanded(query, items, own, 3, alpha)
    np.testing.assert_allclose(found.query.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(found.gallery.numpy(), items)


def test_query_expansion_counts_the_query_once():
    """A query that found itself in the gallery would be weighted twice: (1, 0) + (1, 0) + (0.6, 0.8)."""
    query = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    found = query_expansion(Sets(query, None, np.arange(3)), neighbours=1, alpha=0.0)
    expected = np.array([1.6, 0.8]) / np.hypot(1.6, 0.8)
    np.testing.assert_allclose(found.query[0].numpy(), expected, atol=1e-7)
    # and it stays excluded from its own results, by id, in the expanded search
    metrics = evaluate(
        found.query,
        np.array([0, 1, 0]),
        found.gallery,
        np.array([0, 1, 0]),
        query_ids=np.arange(3),
        gallery_ids=np.arange(3),
        metrics=("recall@1",),
    )
    assert metrics["recall@1"] == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_database_augmentation(seed):
    query, gallery, own = drawn(seed, apart=True)
    found = database_augmentation(sets_of(query, gallery, own), neighbours=2, alpha=1.0)
    expected = reference.expanded(gallery, gallery, np.arange(len(gallery)), 2, 1.0)
    np.testing.assert_allclose(found.gallery.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(found.query.numpy(), query)


def test_database_augmentation_refuses_a_gallery_that_holds_the_queries():
    query, gallery, own = drawn(0, apart=False)
    with pytest.raises(ValueError, match="mix each query"):
        database_augmentation(sets_of(query, gallery, own), neighbours=2, alpha=1.0)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("dim", [2, 5])
def test_pca_is_fitted_on_training_embeddings_alone(whiten, dim):
    """Equal to singular vectors up to the sign of each component, which no cosine sees."""
    random = np.random.default_rng(0)
    query, train = (random.normal(size=(n, 5)).astype(np.float32) for n in (7, 40))
    found = pca(sets_of(query, None, np.arange(7), train), dim, whiten).query.double().numpy()
    expected = reference.whitened(query, train, dim, whiten)
    assert found.shape == (7, dim)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    subset = pca(sets_of(query[:3], None, np.arange(3), train), dim, whiten).query.numpy()
    np.testing.assert_allclose(subset, found[:3], atol=1e-6)


def test_pca_drops_directions_without_variance():
    """Whitening would blow rounding up to the size of the rest."""
    train = np.zeros((20, 4), dtype=np.float32)
    train[:, :2] = np.random.default_rng(0).normal(size=(20, 2))
    sets = sets_of(train[:5], None, np.arange(5), train)
    assert pca(sets, None, True).query.shape == (5, 2)
    with pytest.raises(ValueError, match="have 2 principal components"):
        pca(sets, 3, True)


def test_pca_needs_training_embeddings():
    query, gallery, own = drawn(0, apart=False)
    with pytest.raises(ValueError, match="training embeddings"):
        pca(sets_of(query, gallery, own), None, True)


def test_truncation():
    found = truncate(Sets(torch.tensor([[3.0, 4.0, 9.0]]), None, np.arange(1)), dim=2)
    np.testing.assert_allclose(found.query.numpy(), [[0.6, 0.8]], atol=1e-7)
    with pytest.raises(ValueError, match="have 2 numbers"):
        truncate(found, dim=3)


def test_steps_compose_in_the_given_order():
    """Truncated and then whitened is another thing than whitened and then truncated."""
    random = np.random.default_rng(1)
    query, train = (random.normal(size=(n, 4)).astype(np.float32) for n in (6, 30))
    sets = sets_of(query, None, np.arange(6), train)
    first = pca(truncate(sets, 3), None, True).query
    expected = reference.whitened(query[:, :3], train[:, :3], 3, True)
    np.testing.assert_allclose((first @ first.T).numpy(), expected @ expected.T, atol=1e-5)
    assert truncate(pca(sets, None, True), 3).query.shape == first.shape


@pytest.mark.parametrize(("seed", "apart"), CASES)
@pytest.mark.parametrize(("k1", "k2", "weight"), [(4, 2, 0.3), (2, 1, 0.0), (30, 3, 0.5)])
def test_k_reciprocal(seed, apart, k1, k2, weight):
    query, gallery, own = drawn(seed, apart)
    found = k_reciprocal(sets_of(query, gallery, own), k1, k2, weight)
    expected = reference.k_reciprocal(query, gallery, k1, k2, weight)
    whole = np.concatenate([found(slice(0, 2)), found(slice(2, len(query)))])
    np.testing.assert_allclose(-whole, expected, atol=1e-6)


def test_k_reciprocal_refuses_an_image_twice():
    """After query expansion a self-retrieval has each image as it is and expanded."""
    query, gallery, own = drawn(0, apart=False)
    expanded = query_expansion(sets_of(query, gallery, own), 3, 3.0)
    with pytest.raises(ValueError, match="twice"):
        k_reciprocal(expanded, 4, 2, 0.3)


@pytest.mark.parametrize(("seed", "apart"), CASES)
def test_diffusion(seed, apart):
    query, gallery, own = drawn(seed, apart)
    found = diffusion(sets_of(query, gallery, own), neighbours=3, alpha=0.9, gamma=3.0)
    expected = reference.diffusion(query, gallery, 3, 0.9, 3.0)
    np.testing.assert_allclose(found(slice(0, len(query))), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_metrics_of_similarities_are_those_of_evaluate(seed):
    """The same ranking, as vectors and as a matrix of similarities, in pieces of any size."""
    query, gallery, own = drawn(seed, apart=seed % 2 == 1)
    items = query if gallery is None else gallery
    random = np.random.default_rng(seed)
    labels, others = (random.integers(0, 3, size=len(x)) for x in (query, items))
    if gallery is None:
        others = labels
    ids = {} if gallery is None else {"gallery": gallery, "gallery_labels": others}
    expected = evaluate(query, labels, metrics=METRICS, **ids)
    cosines = np.array(reference.cosines(query, items))
    for memory in (1, 1 << 28):
        found = evaluate_similarities(
            lambda rows: cosines[rows], labels, others, own, metrics=METRICS, memory=memory
        )
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_collapsed_re_ranking_scores_chance():
    """All similarities equal: neither the order of the data nor the position of the query may help."""
    labels = np.repeat(np.arange(4), 5)
    found = evaluate_similarities(
        lambda rows: np.zeros((rows.stop - rows.start, 20)),
        labels,
        labels,
        np.arange(20),
        metrics=("recall@1",),
    )
    assert found["recall@1"] == pytest.approx(4 / 19)


def test_metrics_of_similarities_refuse_what_has_no_ranking():
    labels = np.array([0, 0])
    with pytest.raises(ValueError, match="auc"):
        evaluate_similarities(
            lambda rows: np.eye(2)[rows], labels, labels, np.arange(2), metrics=("auc",)
        )
    with pytest.raises(ValueError, match="NaN"):
        evaluate_similarities(
            lambda rows: np.full((2, 2), np.nan), labels, labels, np.arange(2), metrics=("mrr",)
        )


def test_averaged_views():
    """Mean of normalised embeddings, not normalised mean of raw ones."""
    images = torch.arange(24, dtype=torch.uint8).reshape(1, 3, 2, 4)

    def encoder(views):
        """Left upper pixels: different lengths for an image and its mirror image."""
        return views[:, :2, 0, 0].float()

    found = averaged(encoder, [flip])(images)
    left, right = np.array([0.0, 8.0]), np.array([3.0, 11.0])
    total = left / np.linalg.norm(left) + right / np.linalg.norm(right)
    np.testing.assert_allclose(found[0].numpy(), total / np.linalg.norm(total), atol=1e-6)
    sizes = []
    averaged(
        lambda views: sizes.append(tuple(views.shape[-2:])) or torch.ones(1, 2),
        [flip, lambda image: multi_scale(image, [1, 0.5])],
    )(images)
    assert sizes == [(2, 4), (1, 2), (2, 4), (1, 2)]
