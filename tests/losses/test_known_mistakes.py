"""Mistakes that public implementations of these losses contain, each with the check that exposes it."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from dml.losses import (
    ArcFace,
    Circle,
    Contrastive,
    LiftedStructure,
    MultiSimilarity,
    NPair,
    ProxyNCA,
    SmoothAP,
    Triplet,
)
from dml.losses.arcface import arcface_logits
from dml.losses.circle import circle_rows
from dml.losses.multi_similarity import mined
from dml.losses.pairs import masked_logsumexp, unit, unit_distances
from dml.losses.smooth_ap import smooth_ap_rows

MIXED = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---------------------------------------------------------------- smooth_ap


def average_precision(similarities, relevant):
    """AP of one ranking by its definition; no ties."""
    order = similarities.argsort(descending=True)
    hits = relevant[order].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return (precision * hits).sum() / hits.sum()


def test_smooth_ap_tends_to_the_true_ap():
    """With a step for the sigmoid it is 1 - AP; this also fixes that the query is not ranked."""
    x, labels = draw(12, 4), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4])
    similarities = normalize(x) @ normalize(x).T
    expected = []
    for q in range(12):
        others = torch.arange(12) != q
        relevant = (labels == labels[q])[others]
        if relevant.any():
            expected.append(1 - average_precision(similarities[q][others], relevant))
    ours = SmoothAP(temperature=1e-6)(x, labels)
    torch.testing.assert_close(ours, torch.stack(expected).mean())


def test_smooth_ap_of_unequal_groups_in_any_order():
    """Reshaping by class needs equal, contiguous groups; masks need neither."""
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 1, 0, 2])
    x = torch.eye(3, dtype=torch.float64)[labels] + 0.01 * draw(9, 3)
    assert SmoothAP()(x, labels) < 1e-3


def test_smooth_ap_without_negatives_is_perfect():
    """Only positives in the ranking: AP is 1 in any order."""
    similarities = draw(3, 5)
    positives = torch.ones(3, 5, dtype=torch.bool)
    rows = smooth_ap_rows(similarities, positives, ~positives, 0.01)
    torch.testing.assert_close(rows, torch.zeros(3, dtype=torch.float64))


# ---------------------------------------------------------------- circle


def circle_slopes(s_p, s_n, margin=0.4, scale=80.0):
    """|dL/ds_p| and dL/ds_n of an anchor with one pair of each kind."""
    s = torch.tensor([[s_p, s_n]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False]])
    circle_rows(s, mask, ~mask, margin, scale).sum().backward()
    return s.grad[0].tolist()


def test_circle_weights_have_the_papers_signs():
    """Both signs turned, an easy positive gets the largest weight: 2.35 for 0.45 at s_p = 0.95."""
    slope_p, slope_n = circle_slopes(0.95, 0.0)
    assert slope_p < 0 < slope_n
    assert slope_p / slope_n == pytest.approx(-(1.4 - 0.95) / 0.4)
    slope_p, slope_n = circle_slopes(0.2, 0.7)
    assert slope_p / slope_n == pytest.approx(-(1.4 - 0.2) / 1.1)


def test_circle_weights_stop_at_zero():
    """A negative beyond -m has reached its optimum and is not pushed further."""
    assert circle_slopes(0.5, -0.5)[1] == 0


def test_circle_couples_positives_and_negatives():
    """softplus(lse_n + lse_p): with the positive at its optimum the negative's pull nearly vanishes.

    Separate softplus terms would go on pushing.
    """
    mask = torch.tensor([[True, False]])
    rows = [
        circle_rows(torch.tensor([[s_p, 0.41]], dtype=torch.float64), mask, ~mask, 0.4, 80.0).item()
        for s_p in (1.0, 0.2)
    ]
    assert rows[0] < 1e-5
    assert rows[1] > 30


# ---------------------------------------------------------------- proxy_nca, proxies


def test_proxy_nca_may_be_negative_in_the_papers_form():
    """Without the own proxy in the denominator a solved batch lies far below 0; with it, at 0."""
    proxies = {"proxies": torch.eye(4) - 0.25}
    x, labels = proxies["proxies"], torch.arange(4)
    paper, plus_plus = ProxyNCA(4, 4), ProxyNCA(4, 4, positive_in_denominator=True)
    paper.load_state_dict(proxies)
    plus_plus.load_state_dict(proxies)
    assert paper(x, labels) < -15
    assert 0 <= plus_plus(x, labels) < 1e-6


def test_proxy_nca_scale_is_of_the_squared_distance():
    """Both vectors times 3 is scale 9."""
    x, labels = draw(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = ProxyNCA(3, 4, scale=9.0, positive_in_denominator=True).double()
    squares = torch.cdist(3 * normalize(x), 3 * normalize(loss.proxies)) ** 2
    expected = torch.nn.functional.cross_entropy(-squares, labels)
    torch.testing.assert_close(loss(x, labels), expected)


def test_proxies_follow_the_seed():
    """Drawn from torch's global generator, so a seeded run begins with the same proxies."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append([ProxyNCA(5, 3).proxies, ArcFace(5, 3).proxies])
    assert all(a.equal(b) for a, b in zip(*drawn, strict=True))


# ---------------------------------------------------------------- arcface


def test_arcface_margin_on_a_grid_of_angles():
    """cos(theta + m) where theta + m < pi, and falling with the angle everywhere."""
    angles = torch.linspace(0.01, math.pi - 0.01, 400, dtype=torch.float64)
    cosines = torch.stack([angles.cos(), torch.zeros_like(angles)], dim=1)
    target = arcface_logits(cosines, torch.zeros(400, dtype=torch.int64), 0.5, 1.0)[:, 0]
    inside = angles + 0.5 < math.pi
    torch.testing.assert_close(target[inside], torch.cos(angles + 0.5)[inside])
    assert (target.diff() < 0).all()


def test_arcface_has_a_gradient_at_every_angle():
    """Clamping the cosine at 0 stops all obtuse angles from learning; at +-1 the slope must stay finite."""
    angles = torch.linspace(0.0, math.pi, 60)
    cosines = torch.stack([angles.cos(), torch.zeros(60)], dim=1).requires_grad_()
    logits = arcface_logits(cosines, torch.zeros(60, dtype=torch.int64), 0.5, 64.0)
    logits[:, 0].sum().backward()
    assert cosines.grad.isfinite().all()
    assert (cosines.grad[1:-1, 0] > 0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_arcface_of_embeddings_on_their_centre(sign):
    """35 % of float32 self-cosines exceed 1; an unclamped root or arccosine is NaN there."""
    loss = ArcFace(200, 32)
    x = (sign * loss.proxies).detach().requires_grad_()
    loss(x, torch.arange(200)).backward()
    assert x.grad.isfinite().all()
    assert loss.proxies.grad.isfinite().all()


def test_arcface_without_margin_is_the_normalised_softmax():
    """m = 0 is the known special case."""
    loss = ArcFace(4, 8, margin=0.0, scale=16.0).double()
    x, labels = draw(8, 8), MIXED
    logits = 16 * normalize(x) @ normalize(loss.proxies).T
    torch.testing.assert_close(loss(x, labels), torch.nn.functional.cross_entropy(logits, labels))


# ---------------------------------------------------------------- multi_similarity


def test_multi_similarity_keeps_near_duplicates():
    """The authors' code drops self pairs by similarity below 1 - 1e-5, and near duplicates with them."""
    x = normalize(draw(8, 16, dtype=torch.float32))
    x[1] = x[0] + 1e-4 * x[2]
    similarities = normalize(x) @ normalize(x).T
    assert similarities[0, 1] > 1 - 1e-5
    same = MIXED[:, None] == MIXED
    positives, _ = mined(similarities, same & ~torch.eye(8, dtype=torch.bool), ~same, 3.0)
    assert positives[0, 1]
    assert not positives.diagonal().any()


def test_multi_similarity_divides_by_the_batch_size():
    """An anchor that mining skips still counts in the denominator: the singleton halves nothing else."""
    x, labels = draw(8, 4), MIXED
    loss = MultiSimilarity(epsilon=3.0)
    rows = [loss(x, labels) * 8]
    apart = torch.cat([x, 100 * draw(1, 4, seed=5)])
    more = torch.cat([labels, torch.tensor([9])])
    # the added singleton has no row of its own, but is a negative of the others
    with_singleton = loss(apart, more) * 9
    assert with_singleton >= rows[0]
    assert MultiSimilarity()(x[:3], torch.tensor([0, 1, 2])) == 0


# ---------------------------------------------------------------- n_pair


def test_n_pair_of_one_class_is_zero():
    """Nothing to tell apart; only the length penalty is left."""
    x = draw(2, 4).requires_grad_()
    labels = torch.tensor([3, 3])
    assert NPair(l2_weight=0.0)(x, labels) == 0
    penalised = NPair(l2_weight=0.1)(x, labels)
    torch.testing.assert_close(penalised, 0.1 * x.square().sum(1).mean())
    penalised.backward()
    assert x.grad.norm() > 0


def test_n_pair_takes_one_pair_per_class():
    """Third images and singletons take no part, as anchors, positives, negatives or in the penalty."""
    x, labels = draw(8, 4), MIXED
    moved = x.clone()
    moved[[2, 7]] = 50.0
    torch.testing.assert_close(NPair()(moved, labels), NPair()(x, labels))


def test_n_pair_does_not_overflow():
    """exp without logsumexp overflows at inner products of 90; long embeddings have thousands."""
    x = 100 * draw(8, 4, dtype=torch.float32)
    assert NPair(l2_weight=0.0)(x, MIXED).isfinite()


# ---------------------------------------------------------------- distances and masks


@pytest.mark.parametrize(
    "loss",
    [
        Triplet(squared_distances=False),
        Contrastive(),
        LiftedStructure(),
        LiftedStructure(variant="generalized"),
    ],
    ids=lambda loss: f"{type(loss).__name__}-{getattr(loss, 'variant', '')}",
)
def test_duplicates_have_a_finite_gradient(loss):
    """sqrt(0) has slope infinity: one duplicate image would turn all weights into NaN."""
    x = draw(8, 16, dtype=torch.float32)
    x[1], x[5] = x[0], x[3]
    x.requires_grad_()
    loss(x, MIXED).backward()
    assert x.grad.isfinite().all()
    assert x.grad.norm() < 100


def test_equal_rows_have_distance_zero():
    """Rounding leaves 1e-7 of 2 - 2 cos; its root would be 3e-4 and its slope 1,500."""
    x = unit(draw(200, 64, dtype=torch.float32))
    distances = unit_distances((x @ x.T).requires_grad_(), squared=False)
    assert (distances.diagonal() == 0).all()


def test_distances_and_their_gradient():
    """The hand-written backward pass against autograd through the plain formula."""
    s = (draw(5, 6).tanh() * 0.99).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: unit_distances(s, squared=False), s)
    torch.testing.assert_close(unit_distances(s, squared=False), (2 - 2 * s).sqrt())
    torch.testing.assert_close(unit_distances(s, squared=True), 2 - 2 * s)


@pytest.mark.parametrize("dim", [0, 1])
def test_masked_logsumexp_and_its_gradient(dim):
    """Likewise, with empty rows and columns, which plain logsumexp makes NaN."""
    values = (50 * draw(5, 6)).requires_grad_()
    mask = draw(5, 6, seed=1) > 0
    mask[2], mask[:, 3] = False, False
    sums = masked_logsumexp(values, mask, dim=dim)
    expected = torch.where(mask, values.detach(), -math.inf).logsumexp(dim)
    torch.testing.assert_close(sums.detach(), expected)

    def finite_part(values):
        return masked_logsumexp(values, mask, dim=dim)[mask.any(dim=dim)]

    assert torch.autograd.gradcheck(finite_part, values)
    (gradient,) = torch.autograd.grad(sums.exp().clamp(max=1).sum(), values)
    assert gradient.isfinite().all()


def test_unit_rows_and_their_gradient():
    """Normalisation divides by the largest element first; that factor must not show in the gradient."""
    x = draw(5, 6).requires_grad_()
    assert torch.autograd.gradcheck(unit, x)
    torch.testing.assert_close(unit(x), normalize(x))
    torch.testing.assert_close(unit(unit(x)), unit(x))
    wide = torch.tensor([[3e38, 3e38], [1e-40, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(
        unit(wide), torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0], [0.0, 0.0]])
    )


def test_extreme_scales_underflow_to_zero_only_where_they_should():
    """exp(-scale * ...) underflows for most pairs at scale 256; the sum must keep its largest."""
    x, labels = draw(8, 4, dtype=torch.float32), MIXED
    ours = Circle(margin=0.25, scale=256.0)(x, labels)
    exact = Circle(margin=0.25, scale=256.0)(x.double(), labels)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)
