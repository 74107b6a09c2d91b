"""What must hold for every loss, whatever its formula. New losses are found by their YAML."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import (
    NUM_CLASSES,
    drawn_batches,
    loss_files,
    pair_losses,
    tuple_losses,
    value_and_gradients,
    variant_id,
)
from pytorch_metric_learning.utils import loss_and_miner_utils as pml_tools

from dml.losses import pairs

ALL = pytest.mark.parametrize("file", loss_files(), ids=variant_id)
PAIRS = pytest.mark.parametrize("file", pair_losses(), ids=variant_id)
# The first image of a class is the paper's anchor and the second its positive, so the order of images
# within a class, and whether pairs are chosen at all, is part of the definition.
BY_ROLE = {"n_pair"}
# Negative pairs alone have a value there, so "no pair" means no pair of any kind.
LEARNS_FROM_NEGATIVES = {"contrastive", "margin", "ranked_list", "roadmap", "snr_contrastive"}
# The mean over the elements of an embedding is part of the definition.
SEES_ELEMENTS = {"snr_contrastive"}
# A pair that several triplets name counts as often.
COUNTS_REPEATS = {"margin"}
BATCHES = {kind: (x, labels) for kind, x, labels in drawn_batches()}
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 4, 4])


def batch(dim: int = 4, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(NUM_CLASSES, dim, generator=draw, dtype=torch.float64)[LABELS]
    return centres + 0.7 * torch.randn(
        len(LABELS), dim, generator=draw, dtype=torch.float64
    ), LABELS


def run(loss, x, labels, *arguments, **keywords):
    """Value and gradients of a loss for its embeddings and parameters."""
    return value_and_gradients(
        lambda x: loss(x, labels, *arguments, **keywords), x, list(loss.parameters())
    )


def with_parameters(loss, change):
    """A copy of the loss with every parameter replaced by `change(parameter)`."""
    changed = copy.deepcopy(loss)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.copy_(change(parameter))
    return changed


@ALL
def test_order_of_the_batch_does_not_matter(file):
    """Public losses that reshape by class need sorted batches and say nothing when they are not."""
    x, labels = batch()
    loss = file.make().double()
    value, gradients = run(loss, x, labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    if file.name in BY_ROLE:  # shuffle classes among each other, keep the order within each
        where = {
            c: sorted((order == i).nonzero().item() for i in (labels == c).nonzero())
            for c in range(5)
        }
        for c, positions in where.items():
            order[positions] = (labels == c).nonzero().flatten()
    shuffled, shuffled_gradients = run(loss, x[order], labels[order])
    torch.testing.assert_close(shuffled, value)
    torch.testing.assert_close(shuffled_gradients[0], gradients[0][order])


@ALL
def test_names_of_classes_do_not_matter(file):
    """A label is a name; a loss that computes with its value is wrong."""
    x, labels = batch()
    loss = file.make().double()
    if file.parametric:
        new = torch.randperm(NUM_CLASSES, generator=torch.Generator().manual_seed(4))

        def move(parameter):  # what belongs to class c now belongs to class new[c]
            if parameter.ndim == 0 or parameter.shape[0] % NUM_CLASSES:
                return parameter
            by_class = parameter.reshape(NUM_CLASSES, -1, *parameter.shape[1:])
            moved = torch.empty_like(by_class)
            moved[new] = by_class
            return moved.reshape(parameter.shape)

        renamed, names = with_parameters(loss, move), new[labels]
    else:
        renamed, names = loss, labels * 1000 - 7
    torch.testing.assert_close(renamed(x, names), loss(x, labels))


@ALL
def test_rotating_the_space_does_not_matter(file):
    """Losses see distances and angles only."""
    if file.name in SEES_ELEMENTS:
        pytest.skip("another basis has other elements")
    x, labels = batch()
    loss = file.make().double()
    draw = torch.Generator().manual_seed(6)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=draw, dtype=torch.float64))
    rotated = with_parameters(loss, lambda p: p @ rotation if p.shape[-1:] == (4,) else p)
    torch.testing.assert_close(rotated(x @ rotation, labels), loss(x, labels))


@ALL
def test_length_matters_only_where_declared(file):
    """The evaluator normalises or not by what the schema says, so the schema must be right."""
    x, labels = batch()
    loss = file.make().double()
    lengths = torch.linspace(0.5, 3, len(x), dtype=torch.float64)[:, None]
    same = torch.allclose(loss(x * lengths, labels), loss(x, labels), rtol=1e-9)
    assert same == file.by_direction


@ALL
def test_blocks_give_the_same(file, monkeypatch):
    """Computing in blocks, and again in the backward pass, is a matter of memory only."""
    x, labels = batch()
    loss = file.make().double()
    value, gradients = run(loss, x, labels)
    monkeypatch.setattr(pairs, "BLOCK_ELEMENTS", 1)
    blocked, blocked_gradients = run(loss, x, labels)
    torch.testing.assert_close(blocked, value)
    torch.testing.assert_close(blocked_gradients, gradients)


@PAIRS
@pytest.mark.parametrize("kind", ["no_pair", "one_row"])
def test_a_batch_without_a_pair_gives_zero(file, kind):
    """The last batch of an epoch may hold no pair; NaN or a missing gradient there ends a run."""
    x, labels = BATCHES[kind]
    value, gradients = run(file.make().double(), x, labels)
    if kind == "no_pair" and file.name in LEARNS_FROM_NEGATIVES:
        assert value > 0
        return
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in gradients)


@ALL
@pytest.mark.parametrize("kind", ["one_class", "two_rows", "duplicates_across"])
def test_odd_batches_stay_finite(file, kind):
    """One class only, one pair only, equal images under different labels."""
    x, labels = BATCHES[kind]
    value, gradients = run(file.make(), x.float(), labels)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@ALL
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("kind", ["one_class", "no_pair", "duplicates_across", "one_row"])
def test_anomaly_detection_finds_nothing(file, kind):
    """A NaN that a mask multiplies away later still stops a run under detect_anomaly."""
    x, labels = BATCHES[kind]
    with torch.autograd.detect_anomaly(check_nan=True):
        run(file.make(), x.float(), labels)


@ALL
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_collapsed_batch_stays_finite(file, fill):
    """All embeddings equal, or all zero (a dead layer): square roots and norms have no slope there."""
    loss = file.make()
    value, gradients = run(loss, torch.full((10, 4), fill), LABELS)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@ALL
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 2e4), (torch.bfloat16, 1e30)])
def test_half_precision_of_any_scale(file, dtype, size):
    """Under mixed precision the loss receives halves; squares of large ones overflow in float32 too."""
    x, labels = batch()
    if not file.by_direction:
        size = 1.0  # there the scale is part of the value
    half = (x / x.abs().max() * size).to(dtype)
    loss = file.make()
    value, gradients = run(loss, half, labels)
    assert value.dtype == torch.float32
    assert gradients[0].dtype == dtype
    assert all(gradient.isfinite().all() for gradient in gradients)
    expected = copy.deepcopy(loss).double()(half.double(), labels)
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    "file", [file for file in loss_files() if not file.by_direction], ids=variant_id
)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 6e4), (torch.bfloat16, 1e30)])
def test_lengths_that_are_too_great_end_in_an_error(file, dtype, size):
    """Where the length is part of the value it may overflow: a finite loss or an error, never NaN."""
    x, labels = batch()
    half = (x / x.abs().max() * size).to(dtype)
    try:
        value, gradients = run(file.make(), half, labels)
    except ValueError as error:
        told = str(error)
    else:
        assert value.isfinite()
        assert not any(gradient.isnan().any() for gradient in gradients)
        return
    assert "though its inputs are finite; largest magnitudes: embeddings" in told


@ALL
def test_tiny_embeddings_have_a_direction(file):
    """1e-30 squared is 0 in float32; a norm with an epsilon would take the direction for zero."""
    if not file.by_direction:
        pytest.skip("the length is part of the value")
    x, labels = batch()
    loss = file.make()
    torch.testing.assert_close(
        loss(x.float() * 1e-30, labels), loss(x.float(), labels), rtol=1e-4, atol=1e-5
    )


@ALL
def test_autocast_does_not_reach_the_loss(file):
    """A bfloat16 similarity has 3 digits; multiplied by a scale of 80 it has none left."""
    x, labels = batch(dim=4)
    loss = file.make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(x.float(), labels)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, loss(x.float(), labels), rtol=0, atol=0)


@ALL
def test_a_small_step_downhill_lowers_it(file):
    """The gradient points the right way: a sign error still changes the weights, just wrongly."""
    x, labels = batch()
    loss = file.make().double()
    value, gradients = run(loss, x, labels)
    assert gradients[0].norm() > 0
    step = 1e-7 * x.norm() / gradients[0].norm()  # so small that no hinge switches
    assert loss(x - step * gradients[0], labels) < value


@ALL
def test_parameters_are_trained_and_saved(file):
    """Every parameter gets a gradient, one step moves it, and the state dict brings it back."""
    x, labels = batch()
    loss = file.make()
    assert bool(list(loss.parameters())) == file.parametric
    assert all(
        (p == q).all() for p, q in zip(loss.parameters(), file.make().parameters(), strict=True)
    )
    for parameter in loss.parameters():
        before = parameter.detach().clone()
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        optimizer.zero_grad()
        loss(x.float(), labels).backward()
        optimizer.step()
        assert not parameter.equal(before)
    other = with_parameters(file.make(), torch.zeros_like)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(x.float(), labels), loss(x.float(), labels), rtol=0, atol=0)


@PAIRS
def test_the_batch_as_its_own_reference(file):
    """A memory that holds just this batch, self masked by slot, is no memory at all."""
    if file.name in BY_ROLE:
        pytest.skip("with a reference all pairs count, without it one per class")
    x, labels = batch()
    loss = file.make().double()
    value = loss(x, labels)
    slots = torch.arange(len(x))
    copied = loss(x, labels, reference=x.clone(), reference_labels=labels, self_slots=slots)
    torch.testing.assert_close(copied, value)
    # columns in another order, self still found by slot
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(8))
    slots = torch.argsort(order)
    shuffled = loss(x, labels, reference=x[order], reference_labels=labels[order], self_slots=slots)
    torch.testing.assert_close(shuffled, value)


@PAIRS
def test_nothing_is_excluded_from_a_reference_without_slots(file):
    """Even if it is the very same tensor: then every anchor meets itself as a positive."""
    x, labels = batch()
    loss = file.make().double()
    same_tensor = loss(x, labels, reference=x, reference_labels=labels)
    a_copy = loss(x, labels, reference=x.clone(), reference_labels=labels)
    nowhere = torch.full_like(labels, -1)
    no_slot = loss(x, labels, reference=x, reference_labels=labels, self_slots=nowhere)
    torch.testing.assert_close(same_tensor, a_copy)
    torch.testing.assert_close(same_tensor, no_slot)


@PAIRS
def test_self_is_masked_by_slot_not_by_similarity(file):
    """A duplicate image in the memory is a positive like any other, and the anchor itself is not one."""
    x, labels = batch()
    loss = file.make().double()
    memory = torch.cat([x, x[:1]])
    memory_labels = torch.cat([labels, labels[:1]])
    slots = torch.arange(len(x))
    kept = loss(x, labels, reference=memory, reference_labels=memory_labels, self_slots=slots)
    moved = memory.clone()
    moved[-1] = -x[0]  # were the duplicate dropped for its similarity 1, moving it would do nothing
    other = loss(x, labels, reference=moved, reference_labels=memory_labels, self_slots=slots)
    assert not torch.allclose(kept, other)
    moved = memory.clone()
    moved[0] = -x[0]  # the anchor's own slot: other anchors see the change, row 0 must not
    alone = {"reference_labels": memory_labels, "self_slots": slots[:1]}
    torch.testing.assert_close(
        loss(x[:1], labels[:1], reference=moved, **alone),
        loss(x[:1], labels[:1], reference=memory, **alone),
    )


@pytest.mark.parametrize("file", tuple_losses(), ids=variant_id)
def test_all_pairs_as_a_tuple_change_nothing(file):
    """A miner that chooses everything, as pairs and as triplets, gives the loss without a miner."""
    if file.name in BY_ROLE:
        pytest.skip("with a tuple all given pairs count, without it one per class")
    x, labels = batch()
    loss = file.make().double()
    chosen = pml_tools.get_all_pairs_indices(labels)
    value, gradients = run(loss, x, labels)
    mined, mined_gradients = run(loss, x, labels, chosen)
    torch.testing.assert_close(mined, value)
    torch.testing.assert_close(mined_gradients, gradients)
    if file.name in COUNTS_REPEATS:
        return
    # triplets know no anchor without a positive, so leave out the singletons
    some = torch.tensor([i for i in range(len(labels)) if labels[i] != 3])
    triplets = pml_tools.get_all_triplets_indices(labels[some])
    torch.testing.assert_close(loss(x[some], labels[some], triplets), loss(x[some], labels[some]))


@pytest.mark.parametrize("file", tuple_losses(), ids=variant_id)
def test_an_empty_tuple_gives_zero(file):
    """A miner may find nothing worth learning."""
    x, labels = batch()
    none = torch.empty(0, dtype=torch.int64)
    for chosen in ((none, none, none), (none, none, none, none)):
        value, gradients = run(file.make().double(), x, labels, chosen)
        assert value.item() == 0
        assert (gradients[0] == 0).all()


@ALL
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    labels=st.lists(st.integers(0, NUM_CLASSES - 1), min_size=1, max_size=9),
    seed=st.integers(0, 2**16),
    exponent=st.floats(-6, 6),
    repeat=st.booleans(),
)
def test_any_batch_gives_finite_numbers(file, labels, seed, exponent, repeat):
    """Whatever counts, scales and duplicates a sampler can produce."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), 4, generator=draw)
    if repeat:
        x[len(x) // 2 :] = x[: len(x) - len(x) // 2].clone()
    if file.by_direction:
        x = x * 10**exponent
    value, gradients = run(file.make(), x, torch.tensor(labels))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
