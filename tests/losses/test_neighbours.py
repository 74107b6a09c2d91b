"""The losses beside the first nine: pytorch-metric-learning as second oracle, what they have in common
with one another, and the mistakes of public implementations.
"""

import math

import pytest
import torch
from loss_cases import drawn_batches, value_and_gradients
from pytorch_metric_learning import distances, losses, regularizers
from pytorch_metric_learning.utils import loss_and_miner_utils as pml_tools
from torch.nn.functional import cross_entropy, normalize

from dml import build
from dml.config import compose
from dml.losses import (
    Angular,
    ArcFace,
    Center,
    Circle,
    CircleSoftmax,
    CosFace,
    CrossEntropy,
    FastAP,
    Focal,
    LogRatio,
    Margin,
    NormSoftmax,
    NTXent,
    ProxyAnchor,
    Quadruplet,
    RankedList,
    RecallAtK,
    Roadmap,
    SmoothAP,
    SNRContrastive,
    SoftTriple,
    SphereFace,
    SubCenterArcFace,
    SupCon,
    TupletMargin,
)
from dml.losses.classification import classification_loss
from dml.losses.quadruplet import hinge_sums
from dml.losses.roadmap import step_of_negatives
from dml.losses.sphereface import cosine_of_multiple, psi
from dml.losses.tuplet_margin import cosine_turned_back

BATCHES = drawn_batches()
UNEQUAL = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 4, 4])
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def around_centres(labels=UNEQUAL, noise=0.7, dim=4, seed=1):
    centres = draw(int(labels.max()) + 1, dim, seed=seed)
    return centres[labels] + noise * draw(len(labels), dim, seed=seed + 100)


def outcome(loss, x, *arguments):
    """Value, and gradients for the embeddings and for the loss's own parameters."""
    return value_and_gradients(lambda x: loss(x, *arguments), x, list(loss.parameters()))


def assert_same(ours, theirs, turn=False):
    """Two outcomes agree; `turn`: the other side keeps its class centres as columns."""
    torch.testing.assert_close(ours[0], theirs[0], **CLOSE)
    for gradient, other in zip(ours[1], theirs[1], strict=True):
        other = other.T if turn and other is not theirs[1][0] else other
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-9)


# ---------------------------------------------------------------- PML, where its form is the paper's

CLASSIFIERS = {
    "proxy_anchor, DivisorReducer": (
        ProxyAnchor(6, 4),
        losses.ProxyAnchorLoss(6, 4),
        "proxies",
    ),
    "norm_softmax, MeanReducer": (NormSoftmax(6, 4), losses.NormalizedSoftmaxLoss(6, 4), "W"),
    "cosface, MeanReducer": (CosFace(6, 4), losses.CosFaceLoss(6, 4), "W"),
    "sub_center_arcface, MeanReducer, their margin in degrees": (
        SubCenterArcFace(6, 4),
        losses.SubCenterArcFaceLoss(
            num_classes=6, embedding_size=4, margin=math.degrees(0.5), sub_centers=3
        ),
        "W",
    ),
    "sphereface without blend, MeanReducer": (
        SphereFace(6, 4, blend=0.0),
        losses.SphereFaceLoss(6, 4),
        "W",
    ),
    "soft_triple, MeanReducer, SparseCentersRegularizer": (
        SoftTriple(6, 4),
        losses.SoftTripleLoss(
            6,
            4,
            weight_regularizer=regularizers.SparseCentersRegularizer(6, 10),
            weight_reg_weight=0.2,
        ),
        "fc",
    ),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_equal_theirs(name):
    """Value, gradient of embeddings and of class centres."""
    ours, theirs, attribute = CLASSIFIERS[name]
    ours, theirs = ours.double(), theirs.double()
    turn = attribute != "proxies"
    with torch.no_grad():
        centres = getattr(theirs, attribute)
        ours.proxies.copy_(centres.T if turn else centres)
    for seed in range(5):
        x = around_centres(noise=0.4 * (seed + 1), seed=seed)
        assert_same(outcome(ours, x, UNEQUAL), outcome(theirs, x, UNEQUAL), turn)


PAIRS = {
    "sup_con, AvgNonZeroReducer": (SupCon(), losses.SupConLoss(0.1)),
    "nt_xent, MeanReducer": (NTXent(), losses.NTXentLoss(0.1)),
    "fast_ap, MeanReducer": (FastAP(), losses.FastAPLoss(10)),
    "tuplet_margin, MeanReducer, their margin in degrees": (
        TupletMargin(),
        losses.TupletMarginLoss(margin=math.degrees(0.1)),
    ),
    "snr_contrastive, AvgNonZeroReducer, not normalised": (
        SNRContrastive(mean_weight=0.0),
        losses.SignalToNoiseRatioContrastiveLoss(
            distance=distances.SNRDistance(normalize_embeddings=False)
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_losses_equal_theirs(name):
    ours, theirs = PAIRS[name]
    for seed in range(5):
        x = around_centres(noise=0.3 * (seed + 1), seed=seed)
        assert_same(outcome(ours, x, UNEQUAL), outcome(theirs, x, UNEQUAL))


@pytest.mark.parametrize("nu", [0.0, 0.1])
def test_margin_equals_theirs_on_triplets(nu):
    """Per triplet, DivisorReducer; without a tuple they take all triplets, we all pairs."""
    ours = Margin(6, nu=nu).double()
    theirs = losses.MarginLoss(learn_beta=True, num_classes=6, nu=nu)
    theirs.beta.data = theirs.beta.data.double()
    triplets = pml_tools.get_all_triplets_indices(UNEQUAL)
    for seed in range(5):
        x = around_centres(seed=seed)
        assert_same(outcome(ours, x, UNEQUAL, triplets), outcome(theirs, x, UNEQUAL, triplets))


# ---------------------------------------------------------------- PML, where it differs


def test_angular_of_theirs_normalises_anchors_but_not_negatives():
    """Equal on unit vectors; else the length of a negative scales their exponent."""
    ours, theirs = Angular(), losses.AngularLoss(45)
    x = normalize(around_centres())
    assert_same(outcome(ours, x, UNEQUAL), (theirs(x, UNEQUAL), outcome(ours, x, UNEQUAL)[1]))
    torch.testing.assert_close(ours(3 * x, UNEQUAL), ours(x, UNEQUAL))
    assert theirs(3 * x, UNEQUAL) > 1.5 * theirs(x, UNEQUAL)


@pytest.mark.filterwarnings("ignore:Values of Tp or Tn")
def test_ranked_list_of_theirs_differentiates_its_weights():
    """Same value up to their 1e-5 per weight, but the weights, constants in the paper, pull along."""
    x = around_centres()
    plain = losses.RankedListLoss(margin=0.4, Tn=0, alpha=1.2)
    value, gradients = outcome(RankedList(negative_temperature=0.0), x, UNEQUAL)
    expected, expected_gradients = outcome(plain, x, UNEQUAL)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(gradients[0], expected_gradients[0], rtol=1e-3, atol=1e-4)
    value, gradients = outcome(RankedList(), x, UNEQUAL)
    weighted = losses.RankedListLoss(margin=0.4, Tn=10, alpha=1.2)
    expected, expected_gradients = outcome(weighted, x, UNEQUAL)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)
    assert (gradients[0] - expected_gradients[0]).norm() > 0.05 * gradients[0].norm()


def test_snr_of_theirs_normalises_unless_told():
    """The signal is a variance: on vectors of length 1 it is nearly the same for all anchors."""
    theirs = losses.SignalToNoiseRatioContrastiveLoss()
    x = around_centres() * torch.linspace(0.3, 3, 10, dtype=torch.float64)[:, None]
    torch.testing.assert_close(theirs(normalize(x), UNEQUAL), theirs(x, UNEQUAL))
    assert abs(theirs(x, UNEQUAL) - SNRContrastive(mean_weight=0.0)(x, UNEQUAL)) > 0.1


def test_tuplet_margin_of_theirs_has_no_gradient_at_duplicates():
    """acos has slope infinity at cosine 1: one duplicate image, and their weights are NaN."""
    x = around_centres()
    x[1] = x[0]
    assert not outcome(losses.TupletMarginLoss(), x.float(), UNEQUAL)[1][0].isfinite().all()
    assert outcome(TupletMargin(), x.float(), UNEQUAL)[1][0].isfinite().all()


def test_sup_con_of_theirs_is_zero_without_negatives():
    """In the paper's formula a class alone in the batch still draws its images to equal similarity."""
    x, labels = draw(5, 4), torch.zeros(5, dtype=torch.int64)
    assert losses.SupConLoss(0.1)(x, labels) == 0
    assert SupCon()(x, labels) > 1


# ---------------------------------------------------------------- one loss as another's special case


def same_centres(loss, other):
    """Both in float64, the second with the first one's class centres."""
    loss, other = loss.double(), other.double()
    with torch.no_grad():
        other.proxies.copy_(loss.proxies)
    return loss, other


@pytest.mark.parametrize(
    ("loss", "other"),
    [
        (CosFace(6, 4, margin=0.0, scale=20.0), NormSoftmax(6, 4, temperature=0.05)),
        (SubCenterArcFace(6, 4, centers=1), ArcFace(6, 4)),
        (SoftTriple(6, 4, centers=1, margin=0.2), CosFace(6, 4, margin=0.2, scale=20.0)),
        (Focal(NormSoftmax(6, 4), gamma=0.0), NormSoftmax(6, 4)),
        (Focal(CosFace(6, 4), gamma=0.0), CosFace(6, 4)),
        (Focal(SubCenterArcFace(6, 4, centers=1), gamma=0.0), ArcFace(6, 4)),
        (Center(6, 4, center_weight=0.0), CrossEntropy(6, 4, label_smoothing=0.0)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_special_cases(loss, other):
    """Two classes, written apart, that must meet."""
    loss, other = same_centres(loss, other)
    x = around_centres(noise=1.5)
    ours, theirs = outcome(loss, x, UNEQUAL), outcome(other, x, UNEQUAL)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1][0], theirs[1][0])


def test_sphereface_without_margin_sees_lengths():
    """m = 1: cross-entropy with weights of length 1 and no bias."""
    loss = SphereFace(6, 4, margin=1, blend=0.0).double()
    x = around_centres()
    logits = x @ normalize(loss.proxies).T
    torch.testing.assert_close(loss(x, UNEQUAL), cross_entropy(logits, UNEQUAL))


def test_one_positive_each_makes_nt_xent_and_sup_con_the_same():
    """The paper's setting of NT-Xent: what is positive is a pair."""
    x, labels = draw(8, 4), torch.arange(4).repeat(2)
    assert_same(outcome(NTXent(0.3), x, labels), outcome(SupCon(0.3), x, labels))


def test_circle_of_classes_is_circle_of_pairs_against_the_centres():
    """With the class centres for a reference, the pair form sees one positive per sample."""
    loss = CircleSoftmax(6, 4, margin=0.4, scale=80.0).double()
    x = around_centres()
    as_pairs = Circle(margin=0.4, scale=80.0)(
        x, UNEQUAL, reference=loss.proxies, reference_labels=torch.arange(6)
    )
    torch.testing.assert_close(loss(x, UNEQUAL), as_pairs)


@pytest.mark.parametrize(
    "inner", [NormSoftmax(6, 4), CosFace(6, 4), CrossEntropy(6, 4), CircleSoftmax(6, 4)]
)
def test_focal_weighs_any_classification_loss(inner):
    """(1 - p)^gamma, of the same logits."""
    inner = inner.double()
    x = around_centres()
    rows = cross_entropy(inner.logits(x, UNEQUAL), UNEQUAL, reduction="none")
    expected = ((1 - (-rows).exp()) ** 2 * rows).mean()
    torch.testing.assert_close(Focal(inner, gamma=2.0)(x, UNEQUAL), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_at_certainty_has_a_finite_gradient(gamma):
    """At p = 1 exactly, which float32 reaches, 1 - p to a power below 1 has slope infinity."""
    loss = Focal(CosFace(3, 3, margin=0.0, scale=200.0), gamma=gamma)
    with torch.no_grad():
        loss.proxies.copy_(torch.eye(3))
    value, gradients = outcome(loss, torch.eye(3), torch.arange(3))
    assert value == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_focal_needs_logits():
    with pytest.raises(TypeError, match="SupCon has no logits"):
        Focal(SupCon())


# ---------------------------------------------------------------- limits and shapes of functions


def ranking_of(x, labels, q):
    """(relevant by rank, best first) of query q, itself left out."""
    others = torch.arange(len(x)) != q
    similarities = (normalize(x) @ normalize(x[q : q + 1]).T)[others, 0]
    return (labels == labels[q])[others][similarities.argsort(descending=True)]


def test_recall_at_k_tends_to_the_true_recall():
    """With steps for the sigmoids; the query itself takes no place in the list."""
    x, labels = draw(12, 4), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4])
    for k in (1, 2, 5):
        expected = []
        for q in range(11):
            relevant = ranking_of(x, labels, q)
            expected.append(1 - relevant[:k].sum() / min(k, relevant.sum()))
        # the step at rank k itself: k - rank is 0 there, half a sigmoid; so ask between two ranks
        loss = RecallAtK(k=[k], k_temperature=1e-6, rank_temperature=1e-6)
        values = []
        for q in range(11):
            relevant = ranking_of(x, labels, q)
            at_k = 0.5 * relevant[k - 1] / min(k, relevant.sum())
            values.append(expected[q] + at_k)
        torch.testing.assert_close(loss(x, labels), torch.stack(values).mean().double())


def test_sup_ap_lies_above_one_minus_ap():
    """The paper's claim, which Smooth-AP does not keep; true up to H(0-) = sigma(0-), hence the sharp tau."""
    above = []
    for seed in range(20):
        x, labels = draw(12, 4, seed=seed), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3])
        true = SmoothAP(temperature=1e-9)(x, labels)
        above.append(Roadmap(calibration=0.0)(x, labels) >= true - 1e-9)
    assert all(above)


def test_step_of_negatives_is_continuous_and_rising_above_zero():
    """The authors' code jumps at delta; the formula does not."""
    lead = torch.tensor([-0.3, -0.02, 0.0, 1e-9, 0.03, 0.05, 0.05 + 1e-9, 0.4], dtype=torch.float64)
    step = step_of_negatives(lead, 0.01, 100.0, 0.05)
    assert (step.diff() > 0).all()
    assert step[2] == 0.5
    assert step[3] == pytest.approx(1.0, abs=1e-6)
    assert step[5] == pytest.approx(step[6].item(), abs=1e-6)
    assert step[7] == pytest.approx(100 * 0.35 + 1.5, abs=0.01)


def test_psi_falls_from_one_to_one_minus_two_m_without_a_break():
    """cos(m theta) itself would rise again after pi / m."""
    angles = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    for margin in (1, 2, 3, 4):
        values = psi(angles.cos(), margin)
        assert values[0] == pytest.approx(1)
        assert values[-1] == pytest.approx(1 - 2 * margin)
        assert (values.diff() < 1e-12).all()
        assert values.diff().abs().max() < 2 * margin * math.pi / 1000
        torch.testing.assert_close(
            cosine_of_multiple(angles.cos(), margin), torch.cos(margin * angles)
        )


def test_sphereface_takes_whole_margins_only():
    with pytest.raises(ValueError, match=r"margin=1.5 must be a whole number"):
        SphereFace(6, 4, margin=1.5)


def test_tuplet_margin_turns_the_angle_back():
    """cos(theta - m) on a grid, with a finite slope at both ends."""
    angles = torch.linspace(0, math.pi, 100, dtype=torch.float64)
    cosines = angles.cos().requires_grad_()
    eased = cosine_turned_back(cosines, 0.1)
    torch.testing.assert_close(eased, torch.cos(angles - 0.1), atol=1e-7, rtol=0)
    eased.sum().backward()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("loss", [TupletMargin, lambda **m: SubCenterArcFace(6, 4, **m)])
def test_degrees_are_refused(loss):
    with pytest.raises(TypeError, match=r"in radians: margin=0.1$"):
        loss(margin_degrees=math.degrees(0.1))
    with pytest.raises(ValueError, match=r"5.73 degrees are margin=0.1"):
        loss(margin=5.73)


def test_fast_ap_of_a_perfect_and_of_a_useless_batch():
    """All positives at distance 0 and all negatives far: 0. All items in one bin: chance."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    assert FastAP()(torch.eye(3)[labels], labels).item() == pytest.approx(0, abs=1e-6)
    collapsed = FastAP()(torch.ones(8, 3), labels)
    chance = torch.tensor([2 / 7] * 6 + [1 / 7] * 2).mean()
    assert collapsed.item() == pytest.approx(1 - chance.item())


def test_hinge_sums_are_those_of_all_pairs():
    """The sorted running totals against the [p, q] table they replace, ties and empty groups included."""
    thresholds, values = draw(50).abs(), (10 * draw(200, seed=1).abs()).round() / 10
    groups = torch.randint(0, 6, (50,), generator=torch.Generator().manual_seed(2))
    value_groups = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(3))
    thresholds[0] = values[0]
    sums, below, count = hinge_sums(thresholds, groups, values, value_groups)
    table = (thresholds[:, None] - values).clamp(min=0) * (groups[:, None] == value_groups)
    torch.testing.assert_close(sums, table.sum(1))
    torch.testing.assert_close(below, (table > 0).sum(1))
    torch.testing.assert_close(count, (groups[:, None] == value_groups).sum(1))


def test_quadruplet_of_a_large_batch_stays_accurate():
    """Running totals of 200,000 distances in float32 would leave three digits."""
    labels = torch.arange(128).repeat_interleave(4)
    x = around_centres(labels, dim=16)
    torch.testing.assert_close(
        Quadruplet()(x.float(), labels).double(), Quadruplet()(x, labels), rtol=1e-5, atol=0
    )


def test_snr_leaves_out_anchors_without_signal():
    """A constant embedding has variance 0; its distances are infinite and belong to no pair."""
    x = around_centres()
    x[0] = 0.5
    x[7] = 0.0
    value, gradients = outcome(SNRContrastive(), x, UNEQUAL)
    assert value.isfinite()
    assert gradients[0].isfinite().all()
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        SNRContrastive()(x[:, :1], UNEQUAL)


def test_margin_with_one_boundary_takes_any_labels():
    """per_class=False needs no numbering of classes."""
    x = around_centres()
    loss = Margin(6, per_class=False).double()
    torch.testing.assert_close(loss(x, 1000 * UNEQUAL - 7), loss(x, UNEQUAL))
    assert loss.beta.shape == (1,)


def test_k_of_recall_must_be_ranks():
    for k in ([], [0, 1]):
        with pytest.raises(ValueError, match="whole numbers of at least 1"):
            RecallAtK(k=k)


def test_classification_losses_refuse_what_is_no_class():
    """The shared helper checks for all of them."""
    with pytest.raises(ValueError, match="CosFace takes no indices_tuple"):
        classification_loss(CosFace(6, 4), draw(2, 4), torch.tensor([0, 1]), (0, 0, 0))


@pytest.mark.parametrize(
    ("loss", "normalised", "compared_by"),
    [
        ("norm_softmax", True, "cosine"),
        ("cross_entropy", False, "cosine"),
        ("sphereface", False, "cosine"),
        ("snr_contrastive", False, "euclidean"),
    ],
)
def test_the_encoder_keeps_lengths_where_the_loss_needs_them(loss, normalised, compared_by):
    """A linear classifier on vectors of length 1 cannot become sure; its evaluation is by cosine still."""
    composed, _ = compose.compose_all([f"loss={loss}"])
    assert build.encoder(composed.config).normalize == normalised
    assert build.geometry(composed.config) == compared_by


# ---------------------------------------------------------------- log-ratio, which has no YAML


def log_ratio_by_loops(x, label_distances):
    rows = []
    for a in range(len(x)):
        items = [
            i
            for i in range(len(x))
            if i != a and label_distances[a, i] > 0 and not torch.equal(x[a], x[i])
        ]
        values = []
        for i in items:
            for j in items:
                if i != j:
                    d_i, d_j = ((x[a] - x[k]).square().sum() for k in (i, j))
                    ratio = label_distances[a, i] / label_distances[a, j]
                    values.append((torch.log(d_i / d_j) - torch.log(ratio)) ** 2)
        if values:
            rows.append(sum(values) / len(values))
    return sum(rows) / max(len(rows), 1) + 0 * x.sum()


def test_log_ratio_equals_the_loops():
    for kind, x, labels in BATCHES:
        y = draw(len(x), 2, seed=len(x))
        if len(x) > 3:
            y[1] = y[0]  # equal labels have no ratio
        label_distances = torch.cdist(y, y).square()
        value, gradients = outcome(LogRatio(), x, label_distances)
        expected, expected_gradients = value_and_gradients(
            lambda x, d=label_distances: log_ratio_by_loops(x, d), x
        )
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12, msg=kind)
        error = (gradients[0] - expected_gradients[0]).abs().max()
        assert error <= 1e-5 * expected_gradients[0].abs().max() + 1e-9, kind
        assert labels.shape == x.shape[:1]


def test_log_ratio_is_zero_where_distances_are_proportional():
    """Any common factor will do: only ratios are compared."""
    x = draw(6, 4)
    assert LogRatio()(x, 7 * torch.cdist(x, x).square()).item() == pytest.approx(0, abs=1e-12)


def test_log_ratio_refuses_class_labels():
    """Two images of one class are at label distance 0; there is nothing to take a ratio of."""
    with pytest.raises(TypeError, match="class labels have no ratios"):
        LogRatio()(draw(4, 2), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"\[4, 4\] and at least 0"):
        LogRatio()(draw(4, 2), draw(3, 3))
    with pytest.raises(ValueError, match=r"embeddings: row 2 of 4 not finite"):
        LogRatio()(draw(4, 2).index_fill(0, torch.tensor([2]), math.nan), torch.ones(4, 4))
