"""The similarity of a pair: exact in any order of summation, near the true one, bounded from outside."""

import numpy as np
import pytest
import torch

from dml.evaluation.scores import SIMILARITIES, Scorer

KINDS = {
    "normal": lambda rng, n, d: rng.standard_normal((n, d)),
    "lengths": lambda rng, n, d: rng.standard_normal((n, d)) * 10.0 ** rng.integers(-8, 8, (n, 1)),
    "sparse": lambda rng, n, d: rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.1),
    "offset": lambda rng, n, d: 50 + rng.standard_normal((n, d)),
    "one_hot": lambda rng, n, d: np.eye(d)[rng.integers(0, d, n)] * rng.integers(1, 9, (n, 1)),
    "alike": lambda rng, n, d: np.ones((n, d)) + 1e-6 * rng.standard_normal((n, d)),
}


def scorer_of(x, similarity, order=None):
    x = torch.from_numpy(np.asarray(x))
    return Scorer((x, torch.arange(len(x)) if order is None else order), None, similarity)


def everything(n):
    i, j = np.divmod(np.arange(n * n), n)
    return i, j


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_order_of_summation_gives_the_same_bits(kind, similarity):
    """Matrix product, pairs, blocks, permuted coordinates, permuted rows: one number per pair."""
    rng = np.random.default_rng(0)
    x = KINDS[kind](rng, 24, 131).astype(np.float32)
    scorer = scorer_of(x, similarity)
    whole = scorer.exact(slice(0, 24), slice(0, 24))
    pairs = scorer.exact_pairs(*everything(24)).reshape(24, 24)
    assert (pairs == whole.numpy()).all()
    assert torch.equal(whole, scorer.exact_blocks(slice(0, 24), slice(0, 24), 1)[0])
    assert torch.equal(whole[5:6, 7:9], scorer.exact(slice(5, 6), slice(7, 9)))
    for vectors in (scorer.query, scorer.gallery):
        assert vectors.squares.tolist() == [
            sum(int(v * 2**200) ** 2 for v in row) / 2**400
            if similarity != "dot"
            else pytest.approx(float(np.square(row).sum()), rel=1e-12)
            for row in vectors.values.double().tolist()
        ]
    order = torch.from_numpy(rng.permutation(24))
    moved = scorer_of(x, similarity, order).exact(slice(0, 24), slice(0, 24))
    assert torch.equal(moved, whole[order][:, order])
    if similarity != "cosine":  # a row's length is summed in the order of its coordinates
        turned = scorer_of(x[:, rng.permutation(131)], similarity)
        np.testing.assert_allclose(
            turned.exact(slice(0, 24), slice(0, 24)), whole, rtol=2e-7, atol=1e-45
        )


@pytest.mark.parametrize("kind", ["normal", "lengths", "sparse", "one_hot", "alike"])
def test_near_the_true_similarity(kind):
    """The grid costs about what rounding a cosine to float32 costs: against plain float64."""
    rng = np.random.default_rng(1)
    x = KINDS[kind](rng, 40, 64).astype(np.float32).astype(np.float64)
    lengths = np.linalg.norm(x, axis=1)
    reach = lengths[:, None] * lengths[None]
    safe = np.where(reach > 0, reach, 1)
    part = slice(0, 40)
    cosine = scorer_of(x, "cosine").exact(part, part).numpy()
    np.testing.assert_allclose(cosine, x @ x.T / safe, rtol=6e-8, atol=4e-8)
    # the scale is a power of two per query: take it from the diagonal
    dot = scorer_of(x, "dot").exact(part, part).numpy().astype(np.float64)
    own = np.diag(x @ x.T)
    scale = np.where(own > 0, np.diag(dot) / np.where(own > 0, own, 1), 0)
    scale = np.where(scale > 0, 2.0 ** np.round(np.log2(np.where(scale > 0, scale, 1))), 0)
    error = np.abs(dot - (x @ x.T) * scale[:, None])
    assert (error <= 1e-7 * reach * scale[:, None] + 1e-45).all()


def test_distances_beside_a_common_offset():
    """x + 1000 loses digits to float32 itself, and no others to the search."""
    rng = np.random.default_rng(2)
    x = (1000 + rng.standard_normal((60, 64))).astype(np.float32)
    true = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(2)
    found = -scorer_of(x, "euclidean").exact(slice(0, 60), slice(0, 60)).double().numpy()
    scale = 2.0 ** np.round(np.log2(found[0, 1] / true[0, 1]))
    np.testing.assert_allclose(found / scale, true, rtol=3e-7)
    assert (np.diag(found) == 0).all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_band_holds(kind, similarity):
    """Outside the band a float32 product, here and in faiss, proves the order."""
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(3)
    n = 60
    scorer = scorer_of(KINDS[kind](rng, n, 200).astype(np.float32), similarity)
    assert scorer.trusted
    exact = scorer.exact(slice(0, n), slice(0, n)).numpy()
    near = scorer.product(slice(0, n), slice(0, n))
    offset = scorer.offset(slice(0, n))
    near = (near if offset is None else near - offset).numpy()
    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    found, item = faiss.knn(
        scorer.query.values.numpy(), scorer.gallery.values.numpy(), n, metric=metric
    )
    listed = np.empty_like(near)
    np.put_along_axis(listed, item, -found if metric == faiss.METRIC_L2 else found, axis=1)
    i, j = everything(n)
    of_faiss = scorer.distance_band if scorer.euclidean else scorer.band
    for values, band in ((near, scorer.band), (listed, of_faiss)):
        low, high = (bound.reshape(n, n, 1) for bound in band(i, exact[i, j]))
        values, other, level = values[:, None, :], exact[:, None, :], exact[:, :, None]
        assert (other > level)[values > high].all()
        assert (other < level)[values < low].all()
    if kind == "normal" and similarity == "cosine":  # and it is narrow enough to be of use
        assert (high - low).max() < 1e-4


def test_a_machine_without_float32_products_is_noticed(monkeypatch):
    """Reduced precision forced on from outside costs time and no correctness."""
    import dml.evaluation as evaluation

    rng = np.random.default_rng(4)
    x, labels = rng.standard_normal((90, 64)), rng.integers(0, 15, 90)
    expected = evaluation.evaluate(x, labels)

    def coarse(self, rows, columns, out=None):
        product = self.query.values[rows].bfloat16() @ self.gallery.values[columns].bfloat16().T
        return product.float() if out is None else out.copy_(product)

    monkeypatch.setattr(Scorer, "product", coarse)
    assert not scorer_of(x, "cosine").trusted
    for backend in ("torch", "faiss"):
        assert evaluation.evaluate(x, labels, backend=backend) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_bits(kind, similarity):
    from dml.evaluation import evaluate_detailed

    rng = np.random.default_rng(5)
    x = torch.from_numpy(KINDS[kind](rng, 700, 40).astype(np.float32))
    labels = rng.integers(0, 90, 700)
    here, there = (
        evaluate_detailed(y, labels, similarity=similarity, backend="torch") for y in (x, x.cuda())
    )
    assert here.metrics == there.metrics
