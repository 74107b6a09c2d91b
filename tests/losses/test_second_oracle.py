"""pytorch-metric-learning as a second oracle: equal where its form is the paper's, and where it is not,
the difference pinned down, so that a change on either side is noticed.
"""

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

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

# pytorch-metric-learning tests itself to 1e-3 or so in half; in float64 both sides must agree closely
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
UNEQUAL = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
SQUARED = distances.LpDistance(power=2)
EUCLIDEAN = distances.LpDistance(normalize_embeddings=False)
DOT = distances.DotProductSimilarity(normalize_embeddings=False)


def around_centres(labels, noise=0.6, dim=8, seed=1):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(int(labels.max()) + 1, dim, generator=draw, dtype=torch.float64)
    return centres[labels] + noise * torch.randn(
        len(labels), dim, generator=draw, dtype=torch.float64
    )


def value_and_gradient(loss, x, labels, *tuples):
    x = x.clone().requires_grad_()
    value = loss(x, labels, *tuples)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient


EQUAL = {
    "contrastive, AvgNonZeroReducer": (
        Contrastive(squared_hinge=False),
        losses.ContrastiveLoss(),
    ),
    "contrastive, MeanReducer": (
        Contrastive(squared_hinge=False, average="all", positive_margin=0.2, negative_margin=1.3),
        losses.ContrastiveLoss(0.2, 1.3, reducer=reducers.MeanReducer()),
    ),
    "triplet, AvgNonZeroReducer": (
        Triplet(margin=0.3, squared_distances=False),
        losses.TripletMarginLoss(margin=0.3),
    ),
    "triplet squared, MeanReducer": (
        Triplet(average="all"),
        losses.TripletMarginLoss(0.2, distance=SQUARED, reducer=reducers.MeanReducer()),
    ),
    "triplet soft, smooth_loss and margin 0": (
        Triplet(variant="soft", squared_distances=False),
        losses.TripletMarginLoss(margin=0, smooth_loss=True),
    ),
    "lifted, distance not normalised": (
        LiftedStructure(),
        losses.LiftedStructureLoss(distance=EUCLIDEAN),
    ),
    "lifted generalized, distance not normalised": (
        LiftedStructure(variant="generalized"),
        losses.GeneralizedLiftedStructureLoss(distance=EUCLIDEAN),
    ),
    "n_pair, dot product not normalised": (
        NPair(l2_weight=0.0),
        losses.NPairsLoss(distance=DOT),
    ),
    "circle, AvgNonZeroReducer": (Circle(), losses.CircleLoss()),
    "multi_similarity without mining": (
        MultiSimilarity(epsilon=3.0),
        losses.MultiSimilarityLoss(2, 50, 0.5),
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_forms(name):
    """Written by other people from the same papers; every anchor here has positives and negatives."""
    ours, theirs = EQUAL[name]
    for seed in range(5):
        x = around_centres(UNEQUAL, noise=0.3 * (seed + 1), seed=seed)
        value, gradient = value_and_gradient(ours, x, UNEQUAL)
        expected, expected_gradient = value_and_gradient(theirs, x, UNEQUAL)
        torch.testing.assert_close(value, expected, **CLOSE)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


def test_multi_similarity_with_their_miner():
    """Their loss needs their miner to become the paper's; ours mines inside."""
    for seed in range(5):
        x = around_centres(UNEQUAL, seed=seed)
        mined = miners.MultiSimilarityMiner(epsilon=0.1)(x, UNEQUAL)
        torch.testing.assert_close(
            MultiSimilarity()(x, UNEQUAL), losses.MultiSimilarityLoss()(x, UNEQUAL, mined), **CLOSE
        )
        unmined = losses.MultiSimilarityLoss()(x, UNEQUAL)
        assert abs(unmined - MultiSimilarity()(x, UNEQUAL)) > 1e-6


def test_tuples_are_read_as_they_read_them():
    """Pairs and triplets of their miners mean the same pairs to both libraries."""
    x = around_centres(UNEQUAL, noise=1.0)
    triplets = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")(x, UNEQUAL)
    assert len(triplets[0]) > 3
    torch.testing.assert_close(
        Triplet(squared_distances=False)(x, UNEQUAL, triplets),
        losses.TripletMarginLoss(margin=0.2)(x, UNEQUAL, triplets),
        **CLOSE,
    )
    pairs = miners.PairMarginMiner(pos_margin=0.6, neg_margin=1.2)(x, UNEQUAL)
    assert len(pairs[0]) > 3
    for ours, theirs in [
        (Contrastive(squared_hinge=False), losses.ContrastiveLoss()),
        (Triplet(squared_distances=False), losses.TripletMarginLoss(margin=0.2)),
    ]:
        torch.testing.assert_close(ours(x, UNEQUAL, pairs), theirs(x, UNEQUAL, pairs), **CLOSE)
    # this miner leaves no anchor with positives only, whom ours would count with the value 0
    pairs = miners.MultiSimilarityMiner(epsilon=0.1)(x, UNEQUAL)
    torch.testing.assert_close(
        Circle()(x, UNEQUAL, pairs), losses.CircleLoss()(x, UNEQUAL, pairs), **CLOSE
    )


def test_proxy_nca_is_theirs_in_the_plus_plus_form():
    """Their ProxyNCALoss is ProxyNCA++; their softmax_scale multiplies the squared distance, as ours."""
    x, labels = around_centres(UNEQUAL), UNEQUAL
    theirs = losses.ProxyNCALoss(3, 8, softmax_scale=9).double()
    ours = ProxyNCA(3, 8, scale=9.0, positive_in_denominator=True).double()
    ours.load_state_dict({"proxies": theirs.proxies})
    value, gradient = value_and_gradient(ours, x, labels)
    expected, expected_gradient = value_and_gradient(theirs, x, labels)
    torch.testing.assert_close(value, expected, **CLOSE)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


def test_arcface_is_theirs_in_radians():
    """Their margin is in degrees and their default 28.6 is our 0.5 (0.49916 to be exact)."""
    x, labels = around_centres(UNEQUAL, noise=2.0), UNEQUAL
    theirs = losses.ArcFaceLoss(3, 8, margin=90 / torch.pi, scale=16).double()
    ours = ArcFace(3, 8, margin=0.5, scale=16.0).double()
    ours.load_state_dict({"proxies": theirs.W.T})
    value, gradient = value_and_gradient(ours, x, labels)
    expected, expected_gradient = value_and_gradient(theirs, x, labels)
    torch.testing.assert_close(value, expected, **CLOSE)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)
    degrees = losses.ArcFaceLoss(3, 8, margin=0.5, scale=16).double()
    plain = losses.NormalizedSoftmaxLoss(3, 8, temperature=1 / 16).double()
    degrees.load_state_dict({"W": theirs.W})
    plain.load_state_dict({"W": theirs.W})
    # 0.5 read as degrees is next to no margin: nearly the plain normalised softmax
    assert abs(degrees(x, labels) - plain(x, labels)) < 0.2
    assert expected - plain(x, labels) > 3


# ---------------------------------------------------------------- where they differ


def test_circle_differs_only_in_who_is_averaged():
    """Averaging over all rows, as fast-reid and PML's MeanReducer do, counts the anchor without positive."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    x = around_centres(labels, noise=1.0, dim=16)
    ours = Circle()(x, labels)
    torch.testing.assert_close(losses.CircleLoss()(x, labels), ours, **CLOSE)
    all_rows = losses.CircleLoss(reducer=reducers.MeanReducer())(x, labels)
    torch.testing.assert_close(all_rows, ours * 7 / 8, **CLOSE)


def test_generalized_lifted_of_theirs_counts_anchors_without_positive():
    """Their empty sum over positives is 0, not -inf: the singleton's negatives alone give a value."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    x = 0.1 * around_centres(labels, noise=1.0, dim=16)
    to_negatives = torch.cdist(x[7:], x[:7])
    alone = (1 - to_negatives).logsumexp(1).relu().sum()
    assert alone > 0.1
    ours = LiftedStructure(variant="generalized")(x, labels)
    theirs = losses.GeneralizedLiftedStructureLoss(distance=EUCLIDEAN)(x, labels)
    torch.testing.assert_close(theirs, (7 * ours + alone) / 8, **CLOSE)


@pytest.mark.parametrize(("classes", "each"), [(4, 2), (2, 4), (8, 4), (4, 8), (3, 3)])
def test_smooth_ap_of_a_perfect_batch(classes, each):
    """PML 2.9 takes the group size for the number of groups: right on square batches only."""
    labels = torch.arange(classes).repeat_interleave(each)
    draw = torch.Generator().manual_seed(0)
    x = torch.eye(classes)[labels] + 0.01 * torch.randn(len(labels), classes, generator=draw)
    assert SmoothAP()(x, labels).item() < 1e-4
    theirs = losses.SmoothAPLoss()(x, labels).item()
    assert theirs < 1e-4 if classes == each else theirs > 0.1


def test_proxy_nca_keeps_its_hardest_sample():
    """PML takes the softmax first and the logarithm after: at scale 32 the worst sample vanishes."""
    x = torch.tensor([[1.0, 0.0]])
    theirs = losses.ProxyNCALoss(2, 2, softmax_scale=32)
    theirs.proxies.data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    ours = ProxyNCA(2, 2, scale=32.0, positive_in_denominator=True)
    ours.load_state_dict({"proxies": theirs.proxies})
    value, gradient = value_and_gradient(ours, torch.tensor([[0.99, 0.1]]), torch.tensor([0]))
    assert gradient.isfinite().all()
    assert gradient.norm() > 1
    assert ours(x, torch.tensor([0])).item() == pytest.approx(128)
    assert theirs(x, torch.tensor([0])).item() != pytest.approx(128)
    assert value > 100


def test_proxy_nca_labels_beyond_the_proxies():
    """PML returns a number or NaN without an error; ours names the label."""
    x, labels = torch.eye(2), torch.tensor([0, 5])
    assert not losses.ProxyNCALoss(2, 2)(x, labels + 5).isfinite()
    with pytest.raises(ValueError, match="label 5 outside"):
        ProxyNCA(2, 2)(x, labels)


def test_n_pair_of_theirs_normalises_unless_told():
    """Their default does not see the length, which the paper's inner product is about."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    x = around_centres(labels)
    default = losses.NPairsLoss()
    torch.testing.assert_close(default(7 * x, labels), default(x, labels))
    assert not torch.allclose(NPair()(7 * x, labels), NPair()(x, labels))
