"""What the losses share: input checks, masks of pairs, and sums that stay finite.

A loss compares anchors (the rows, [n, d]) with others (the columns, [m, d]). Without a memory the
columns are the batch itself. `positives` and `negatives` are boolean masks [n, m]; both are False
where a row meets itself, which is known by position and never guessed from a similarity near 1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from dml.errors import NotFinite
from dml.types import IndicesTuple

# Elements of one [pairs, m] tensor that `blockwise` holds at a time (16 MB of float32).
BLOCK_ELEMENTS = 2**22


class Comparison(NamedTuple):
    """Checked inputs of a loss: float32 (or float64) embeddings and int64 labels on one device.

    embeddings [n, d] and labels [n] are the anchors; reference [m, d] and reference_labels [m]
    what they are compared with. self_slots [n] is the column that holds the anchor itself, -1 if
    none does; None stands for the batch compared with itself, anchor i in column i.
    """

    embeddings: Tensor
    labels: Tensor
    reference: Tensor
    reference_labels: Tensor
    self_slots: Tensor | None


def compare(
    embeddings: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    self_slots: Tensor | None = None,
) -> Comparison:
    """Check the inputs of a pair loss and bring them to one form.

    With `reference` nothing is excluded unless `self_slots` says which column an anchor itself is
    in. Raises TypeError for wrong element types, ValueError for wrong shapes or values.
    """
    embeddings, labels = check_batch(embeddings, labels)
    if reference is None:
        if reference_labels is not None or self_slots is not None:
            raise ValueError("reference_labels and self_slots need reference")
        return Comparison(embeddings, labels, embeddings, labels, None)
    if reference_labels is None:
        raise ValueError("reference needs reference_labels")
    reference, reference_labels = check_batch(reference, reference_labels, "reference")
    if reference.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"reference has {reference.shape[1]} dimensions, embeddings have {embeddings.shape[1]}"
        )
    if self_slots is None:
        self_slots = torch.full_like(labels, -1)
    else:
        self_slots = check_positions(self_slots, "self_slots", -1, len(reference), labels.device)
        if self_slots.shape != labels.shape:
            raise ValueError(
                f"self_slots has {len(self_slots)} entries for {len(labels)} embeddings"
            )
    reference = reference.to(embeddings.dtype)
    return Comparison(embeddings, labels, reference, reference_labels, self_slots)


def check_batch(
    embeddings: Tensor, labels: Tensor, name: str = "embeddings"
) -> tuple[Tensor, Tensor]:
    """Embeddings as float32 (float64 stays) and labels as int64 on the embeddings' device."""
    if not embeddings.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {embeddings.dtype}")
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ValueError(f"{name} must be [n, d] and not empty, got {list(embeddings.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers (int64), got {labels.dtype}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels must be [n] with one label per row of {name}: got {list(labels.shape)} "
            f"for {name} {list(embeddings.shape)}"
        )
    wide = embeddings.dtype if embeddings.dtype == torch.float64 else torch.float32
    return embeddings.to(wide), labels.to(embeddings.device, torch.int64)


def check_rows(tensor: Tensor, name: str) -> None:
    """NotFinite naming the rows of [n, d] that hold NaN or infinity."""
    finite = torch.isfinite(tensor)
    if not finite.all():
        rows = (~finite.all(dim=1)).nonzero().flatten().tolist()
        raise NotFinite(f"{name}: {listed('row', rows)} of {len(tensor)} not finite (NaN or inf)")


def check_finite(loss: Tensor, **causes: Tensor) -> Tensor:
    """The loss, or NotFinite that says which rows of `causes` (name -> [n, d]) spoilt it.

    All inputs are looked at even if the loss is finite: a mask or a comparison can hide a NaN. One
    question at the end makes a GPU wait once.
    """
    extremes = torch.stack([bound for t in causes.values() for bound in t.detach().aminmax()])
    if not torch.isfinite((extremes * 0).sum() + loss):
        for name, tensor in causes.items():
            check_rows(tensor, name)
        largest = ", ".join(f"{name} {t.abs().max().item():.3g}" for name, t in causes.items())
        raise NotFinite(
            f"the loss is {loss.item()} though its inputs are finite; largest magnitudes: {largest}"
        )
    return loss


def check_positions(
    positions: Tensor, name: str, low: int, high: int, device: torch.device
) -> Tensor:
    """Positions [k] as int64, each in [low, high)."""
    if positions.is_floating_point() or positions.dtype == torch.bool or positions.ndim != 1:
        raise ValueError(
            f"{name} must be a vector of whole numbers, "
            f"got {positions.dtype} {list(positions.shape)}"
        )
    positions = positions.to(device, torch.int64)
    if len(positions):
        least, most = (bound.item() for bound in positions.aminmax())
        if least < low or most >= high:
            raise ValueError(
                f"{name} must lie in [{low}, {high}), got values from {least} to {most}"
            )
    return positions


def check_radians(loss: str, margin: float, margin_degrees: float | None) -> None:
    """A margin in [0, pi/2] radians: ValueError for another, TypeError for one in degrees."""
    if margin_degrees is not None:
        radians = math.radians(margin_degrees)
        raise TypeError(f"{loss} takes its margin in radians: margin={radians:.4g}")
    if not 0 <= margin <= math.pi / 2:
        raise ValueError(
            f"margin={margin:g} must lie in [0, pi/2] radians; "
            f"{margin:g} degrees are margin={math.radians(margin):.4g}"
        )


def listed(noun: str, numbers: list[int], limit: int = 10) -> str:
    """`rows 3, 8`, cut after `limit` numbers."""
    shown = ", ".join(str(number) for number in numbers[:limit])
    more = f" and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return f"{noun}{'s' if len(numbers) > 1 else ''} {shown}{more}"


def full_precision(tensor: Tensor) -> torch.autocast:
    """Context without autocast: a half-precision similarity has 3 digits, scaled by 80 none."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


# ---------------------------------------------------------------- similarities and distances


def unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length 1, for any finite input; a zero row stays zero and has a finite gradient."""
    # Dividing by the largest element first keeps the squares from overflowing or vanishing. The
    # result does not depend on that factor, so it needs no gradient.
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    # The length is now at least 1, unless the row is zero.
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1)


def cosine_similarity(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Cosines of the rows of x and y, in float32 or better."""
    x_unit = unit(x)
    return x_unit @ (x_unit if y is x else unit(y)).T


# Relative size of what rounding cannot tell from a squared distance of 0: equal rows 2,048 wide reach 10.
NOISE_EPS = 16


class _Root(torch.autograd.Function):
    """Square root, with gradient 0 where it is 0; there it has slope infinity."""

    @staticmethod
    def forward(ctx: Any, squares: Tensor) -> Tensor:
        roots = squares.sqrt()
        # slope 1 / 2r, written so that it is 0 at r = 0
        ctx.save_for_backward(roots / (2 * squares + torch.finfo(squares.dtype).tiny))
        return roots

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        (slope,) = ctx.saved_tensors
        return gradient * slope


def unit_distances(similarities: Float[Tensor, "*s"], squared: bool) -> Float[Tensor, "*s"]:
    """Euclidean distances between unit vectors: |x - y|^2 = 2 - 2 cos; finite gradient at 0."""
    noise = NOISE_EPS * torch.finfo(similarities.dtype).eps
    squares = F.threshold(torch.rsub(similarities, 2, alpha=2), noise, 0)
    return squares if squared else _Root.apply(squares)


def euclidean_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|x - y| of rows of any length; finite gradient at 0."""
    # Distances from the mean are the same and lose fewer digits in |x|^2 + |y|^2 - 2 x.y.
    centre = y.detach().mean(dim=0)
    x_own, y_own = x - centre, y - centre
    sums = x_own.square().sum(dim=1)[:, None] + y_own.square().sum(dim=1)
    squares = sums - 2 * x_own @ y_own.T
    noise = NOISE_EPS * torch.finfo(sums.dtype).eps * sums.detach()
    return _Root.apply(squares * (squares > noise))


# ---------------------------------------------------------------- masks


def pair_masks(
    batch: Comparison, indices_tuple: IndicesTuple | None = None
) -> tuple[Bool[Tensor, "n m"], Bool[Tensor, "n m"]]:
    """(positives, negatives): all pairs by label, or those a miner chose.

    Of triplets (a, p, n) the pairs are (a, p) and (a, n). A pair named twice counts once.
    """
    if indices_tuple is None:
        positives = batch.labels[:, None] == batch.reference_labels
        negatives = ~positives
    else:
        shape = (len(batch.labels), len(batch.reference_labels))
        positives, negatives = batch.labels.new_zeros((2, *shape), dtype=torch.bool)
        anchors, others, negative_anchors, negative_others = as_pairs(indices_tuple, batch)
        positives[anchors, others] = True
        negatives[negative_anchors, negative_others] = True
    if batch.self_slots is None:
        positives.fill_diagonal_(False)
        negatives.fill_diagonal_(False)
        return positives, negatives
    columns = torch.arange(len(batch.reference_labels), device=batch.labels.device)
    others = batch.self_slots[:, None] != columns
    return positives & others, negatives & others


def as_pairs(indices_tuple: IndicesTuple, batch: Comparison) -> tuple[Tensor, ...]:
    """Checked (anchor, positive, anchor, negative) from pairs or triplets."""
    indices = check_tuple(indices_tuple, batch)
    return indices if len(indices) == 4 else (indices[0], indices[1], indices[0], indices[2])


def check_tuple(indices_tuple: IndicesTuple, batch: Comparison) -> tuple[Tensor, ...]:
    """A miner's tuple as int64 vectors with every position inside the batch and the reference."""
    if not isinstance(indices_tuple, tuple | list) or len(indices_tuple) not in (3, 4):
        got = len(indices_tuple) if isinstance(indices_tuple, tuple | list) else indices_tuple
        raise ValueError(
            "indices_tuple must hold triplets (anchor, positive, negative) or pairs "
            f"(anchor, positive, anchor, negative), got {got} entries"
        )
    n, m = len(batch.labels), len(batch.reference_labels)
    # positions of anchors are rows, all others columns
    bounds = (n, m, m) if len(indices_tuple) == 3 else (n, m, n, m)
    device = batch.labels.device
    indices = tuple(
        check_positions(vector, f"indices_tuple[{i}]", 0, bound, device)
        for i, (vector, bound) in enumerate(zip(indices_tuple, bounds, strict=True))
    )
    together = ((0, 1, 2),) if len(indices) == 3 else ((0, 1), (2, 3))
    for group in together:
        lengths = [len(indices[i]) for i in group]
        if len(set(lengths)) > 1:
            raise ValueError(f"indices_tuple: entries {group} differ in length: {lengths}")
    return indices


def refuse_tuple(indices_tuple: IndicesTuple | None, loss: str, why: str) -> None:
    """ValueError for a loss that no miner can serve."""
    if indices_tuple is not None:
        raise ValueError(f"{loss} takes no indices_tuple: {why}. Use miner=none.")


# ---------------------------------------------------------------- sums and means


class _MaskedLogSumExp(torch.autograd.Function):
    """log sum exp over a mask. The softmax is its gradient, and gives the value as well.

    Not torch.logsumexp: where every entry is -inf its gradient is NaN, and on a CPU its exp takes
    fifty times as long for entries that underflow, which a scale of 80 makes of most.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor, dim: int) -> Tensor:
        empty = ~mask.any(dim=dim, keepdim=True)
        values = values.masked_fill(~(mask | empty), -math.inf)
        shares = values.softmax(dim=dim)
        # The largest entry's share is exp(max) / sum exp.
        sums = values.amax(dim=dim) - shares.amax(dim=dim).log()
        ctx.save_for_backward(shares, empty)
        ctx.dim = dim
        return sums.masked_fill(empty.squeeze(dim), -math.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        shares, empty = ctx.saved_tensors
        gradient = gradient.unsqueeze(ctx.dim).masked_fill(empty, 0)
        return shares * gradient, None, None


def masked_logsumexp(
    values: Float[Tensor, "n m"], mask: Bool[Tensor, "n m"], dim: int = 1
) -> Float[Tensor, " k"]:
    """log sum exp over the entries in `mask`; -inf where there is none, with gradient 0.

    `values` must be finite, inside the mask and outside.
    """
    if values.numel() == 0:
        return values.sum(dim=dim) - math.inf
    return _MaskedLogSumExp.apply(values, mask, dim)


def mean_over(values: Float[Tensor, "..."], valid: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean of the entries in `valid`; 0 (still connected to the graph) if there is none.

    `values` must be finite, in `valid` and outside.
    """
    weights = valid.to(values.dtype)  # on a CPU a product is several times faster than torch.where
    return (values * weights).sum() / weights.sum().clamp(min=1)


def blockwise(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    matrix: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    negatives: Bool[Tensor, "n m"],
) -> Float[Tensor, "n ..."]:
    """`function(matrix, positives, negatives)`, one result per row, in blocks of rows.

    For functions that need a [pairs, m] tensor, one row per positive pair. If all of it fits into
    BLOCK_ELEMENTS it is one call; else each block is computed again in the backward pass, so that
    only one block's tensors are alive at a time.
    """
    most_pairs = int(positives.sum(dim=1).max())
    if most_pairs * matrix.numel() <= BLOCK_ELEMENTS:
        return function(matrix, positives, negatives)
    rows = max(1, BLOCK_ELEMENTS // (most_pairs * matrix.shape[1]))
    parts = [
        checkpoint(function, *block, use_reentrant=False, preserve_rng_state=False)
        for block in zip(*(t.split(rows) for t in (matrix, positives, negatives)), strict=True)
    ]
    return torch.cat(parts)


# ---------------------------------------------------------------- proxies


def check_classes(labels: Int[Tensor, " n"], num_classes: int) -> None:
    """ValueError naming the labels outside 0..num_classes-1.

    Checked on a GPU too, where indexing with such a label would end the process.
    """
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        raise ValueError(
            f"{listed('label', labels[outside].unique().tolist())} outside 0..{num_classes - 1}: "
            f"num_classes={num_classes}. Renumber the training labels from 0, or raise num_classes."
        )
