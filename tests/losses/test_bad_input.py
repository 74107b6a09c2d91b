"""Wrong input ends in an error that names it, never in NaN or a wrong number."""

import math

import pytest
import torch
from loss_cases import NUM_CLASSES, loss_files, pair_losses, tuple_losses, variant_id

from dml.losses import ArcFace, Circle, Contrastive, LiftedStructure, ProxyNCA, SmoothAP, Triplet

ALL = pytest.mark.parametrize("file", loss_files(), ids=variant_id)
PAIRS = pytest.mark.parametrize("file", pair_losses(), ids=variant_id)
TUPLES = pytest.mark.parametrize("file", tuple_losses(), ids=variant_id)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def embeddings():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@ALL
def test_float_labels(file):
    """Labels read by pandas with a missing value are floats."""
    with pytest.raises(TypeError, match=r"labels must be integers \(int64\), got torch.float32"):
        file.make()(embeddings(), LABELS.float())


@ALL
def test_small_integer_labels_are_fine(file):
    """Any integer type names classes equally well."""
    loss = file.make()
    torch.testing.assert_close(
        loss(embeddings(), LABELS.to(torch.int32)), loss(embeddings(), LABELS)
    )


@ALL
@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (torch.zeros(6, 4), LABELS[:5], r"one label per row.*\[5\] for embeddings \[6, 4\]"),
        (torch.zeros(6, 4), LABELS[:, None], r"labels must be \[n\].*got \[6, 1\]"),
        (torch.zeros(6), LABELS, r"embeddings must be \[n, d\].*got \[6\]"),
        (torch.zeros(6, 4, 1, 1), LABELS, r"embeddings must be \[n, d\].*got \[6, 4, 1, 1\]"),
        (torch.zeros(0, 4), LABELS[:0], r"not empty, got \[0, 4\]"),
    ],
    ids=["too_few_labels", "column_of_labels", "one_axis", "feature_maps", "empty"],
)
def test_wrong_shapes(file, x, labels, message):
    """Broadcasting would turn most of these into a number."""
    with pytest.raises(ValueError, match=message):
        file.make()(x, labels)


@ALL
def test_integer_embeddings(file):
    with pytest.raises(TypeError, match=r"embeddings must be floating point, got torch.int64"):
        file.make()(torch.ones(6, 4, dtype=torch.int64), LABELS)


@ALL
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_embeddings_name_their_rows(file, bad):
    """Masks and hinges can hide a NaN; the rows say which images to look at."""
    x = embeddings()
    x[1, 0] = x[4, 3] = bad
    with pytest.raises(ValueError, match=r"embeddings: rows 1, 4 of 6 not finite"):
        file.make()(x, LABELS)


def test_a_loss_that_overflows_says_so():
    """Inner products of embeddings near 1e30 are infinite: no silent inf."""
    from dml.losses import NPair

    with pytest.raises(
        ValueError, match=r"the loss is (inf|nan) though its inputs are finite.*1e\+30"
    ):
        NPair()(torch.full((6, 4), 1e30), LABELS)


@pytest.mark.parametrize("file", [file for file in loss_files() if file.parametric], ids=variant_id)
@pytest.mark.parametrize("wrong", [-1, NUM_CLASSES])
def test_labels_out_of_range(file, wrong):
    """Class numbers of a whole data set, or numbers from 1, do not fit the proxies of its training half."""
    labels = LABELS.clone()
    labels[2] = wrong
    with pytest.raises(ValueError, match=rf"label {wrong} outside 0..5: num_classes=6"):
        file.make()(embeddings(), labels)


def test_parameters_that_went_wrong_are_named():
    """After a diverged step the proxies hold the NaN, not the images."""
    loss = ProxyNCA(NUM_CLASSES, 4)
    with torch.no_grad():
        loss.proxies[3] = math.nan
    with pytest.raises(ValueError, match=r"proxies: row 3 of 6 not finite"):
        loss(embeddings(), LABELS)


@pytest.mark.parametrize(
    "file", [file for file in loss_files() if not file.schema.miners], ids=variant_id
)
def test_losses_that_no_miner_serves_say_so(file):
    """Ignoring the tuple would train on something else than asked for."""
    anchors = torch.tensor([0])
    with pytest.raises(ValueError, match=r"takes no indices_tuple: .*miner=none"):
        file.make()(embeddings(), LABELS, (anchors, anchors + 1, anchors + 2))


@TUPLES
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ((torch.tensor([0]), torch.tensor([1])), "got 2 entries"),
        (torch.tensor([[0, 1, 2]]), "must hold triplets"),
        ((torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([2])), "differ in length"),
        ((torch.tensor([0]), torch.tensor([6]), torch.tensor([2])), r"\[1\] must lie in \[0, 6\)"),
        ((torch.tensor([-1]), torch.tensor([1]), torch.tensor([2])), r"values from -1 to -1"),
        ((torch.tensor([0.0]), torch.tensor([1]), torch.tensor([2])), "whole numbers"),
        ((torch.ones(6, 6, dtype=torch.bool),) * 3, "whole numbers"),
    ],
    ids=["two", "tensor", "lengths", "beyond", "negative", "float", "masks"],
)
def test_incompatible_tuples(file, chosen, message):
    """A tuple of another batch, or of another library, must not be read as something else."""
    with pytest.raises(ValueError, match=message):
        file.make()(embeddings(), LABELS, chosen)


@PAIRS
def test_incompatible_references(file):
    """A memory of other dimensions or without labels."""
    loss, x = file.make(), embeddings()
    with pytest.raises(ValueError, match="reference needs reference_labels"):
        loss(x, LABELS, reference=x)
    with pytest.raises(ValueError, match="reference has 3 dimensions, embeddings have 4"):
        loss(x, LABELS, reference=x[:, :3], reference_labels=LABELS)
    with pytest.raises(ValueError, match=r"one label per row of reference"):
        loss(x, LABELS, reference=x, reference_labels=LABELS[:2])
    with pytest.raises(ValueError, match=r"self_slots must lie in \[-1, 6\)"):
        loss(x, LABELS, reference=x, reference_labels=LABELS, self_slots=LABELS + 5)
    with pytest.raises(ValueError, match="self_slots has 2 entries for 6 embeddings"):
        loss(x, LABELS, reference=x, reference_labels=LABELS, self_slots=LABELS[:2])
    with pytest.raises(ValueError, match="need reference"):
        loss(x, LABELS, self_slots=LABELS)
    x[2] = math.nan
    with pytest.raises(ValueError, match="reference: row 2 of 6 not finite"):
        loss(embeddings(), LABELS, reference=x, reference_labels=LABELS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArcFace(6, 4, margin=28.6), r"28.6 degrees are margin=0.4992"),
        (lambda: Triplet(variant="hard"), "must be 'margin' or 'soft'"),
        (lambda: Triplet(average="mean"), "must be 'active' or 'all'"),
        (lambda: Contrastive(average="mean"), "must be 'active' or 'all'"),
        (lambda: LiftedStructure(variant="smooth"), "must be 'original' or 'generalized'"),
    ],
)
def test_wrong_options_from_python(make, message):
    """Without the YAML's schema the class itself must refuse."""
    with pytest.raises(ValueError, match=message):
        make()


def test_degrees_are_refused_with_the_value_in_radians():
    """pytorch-metric-learning's 28.6 read as radians, or 0.5 read as degrees, is no margin at all."""
    with pytest.raises(TypeError, match=r"in radians: margin=0.4992"):
        ArcFace(6, 4, margin_degrees=28.6)


def test_plain_calls_accept_a_list_as_tuple():
    """Miners return tuples, a saved one comes back as a list."""
    x, one = embeddings(), torch.tensor([0])
    chosen = (one, one + 1, one + 2)
    torch.testing.assert_close(Circle()(x, LABELS, list(chosen)), Circle()(x, LABELS, chosen))
    with pytest.raises(ValueError, match="SmoothAP takes no indices_tuple"):
        SmoothAP()(x, LABELS, chosen)
