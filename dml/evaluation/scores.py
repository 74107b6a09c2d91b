"""What the similarity of a pair is, exactly, and how far a float32 matrix product may be from it.

Ties decide metrics, so a pair must score the same wherever it sits in a batch, on every backend and
for any number of threads. Floating point sums do not: a matrix product rounds by blocks. Therefore
each vector is first rounded to a grid of 2^-26 of its length. Products of two such vectors are
multiples of a grid of 2^-52 and their partial sums stay below 2^53 steps of it, so a float64 sum of
them is *exact*, in any order. What rounding did to the vectors' lengths is undone by one factor each.
The similarity of a pair is the resulting number as float32. Two items tie when these are equal.

A float32 matrix product is faster and only near. `Scorer.band` gives, for each similarity, an interval
outside which the float32 product proves the order; pairs inside it are scored exactly.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

SIMILARITIES = ("cosine", "dot", "euclidean")
GRID = 2.0**-26  # of a vector's length; see the module's text
# Elements prepared at a time. On a CPU: few enough for its cache, and not enough for torch to share
# each small step out to threads, which costs more than it saves, most of all on a busy machine.
CPU_CHUNK, GPU_CHUNK = 1 << 15, 1 << 24
UNITS_CHUNK = 1 << 22  # elements; fewer would make more of the matrix decompositions they go into


@dataclass(frozen=True)
class Vectors:
    """Rows on their grids.

    values: float32 [n, d], of length at most about 1.4.  squares: float64 [n], squared lengths, exact.
    weight: float64 [n], the length a row should have had for its inner products to be similarities,
    divided by the length it has.
    """

    values: Tensor
    squares: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.values)


def _rows_at_a_time(values: Tensor) -> int:
    chunk = CPU_CHUNK if values.device.type == "cpu" else GPU_CHUNK
    return max(1, chunk // values.shape[1])


@dataclass(frozen=True)
class _Rows:
    """The rows of `values` [n, d] in the order `order` [n], less `centre`, as float64 parts."""

    values: Tensor
    order: Tensor
    centre: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        step = _rows_at_a_time(self.values)
        for start in range(0, len(self.order), step):
            part = slice(start, start + step)
            # Half precision becomes float32, and float64 too: metrics are those of float32 embeddings.
            rows = self.values[self.order[part]].float().double()
            yield part, rows if self.centre is None else rows.sub_(self.centre)


def prepare(
    query: tuple[Tensor, Tensor], gallery: tuple[Tensor, Tensor] | None, similarity: str
) -> tuple[Vectors, Vectors]:
    """Normalise (cosine), centre (euclidean), scale by powers of two and round to the grid.

    query, gallery: values [n, d], real numbers that are finite in float32, and the order [n] in which
    their rows are wanted; gallery None for the query itself.
    A row's result depends on that row (and, for euclidean and dot, on the set), never on its position.
    """
    sets = [_Rows(*query)] if gallery is None else [_Rows(*query), _Rows(*gallery)]
    if similarity == "euclidean":
        centre = _centre(sets[-1])
        sets = [_Rows(rows.values, rows.order, centre) for rows in sets]
    lengths = [_lengths(rows) for rows in sets]
    if similarity == "cosine":
        # A zero vector has no direction; it stays zero, at similarity 0 to everything.
        vectors = [
            _vectors(_rounded(rows, _safe(length), None), torch.ones_like(length))
            for rows, length in zip(sets, lengths, strict=True)
        ]
        return vectors[0], vectors[-1]
    steps = [_power_of_two(length) for length in lengths]
    # One scale for all keeps distances comparable; inner products allow one per set.
    scales = [step.max() for step in steps]
    if similarity == "euclidean":
        scales = [torch.stack(scales).max()] * len(sets)
    vectors = [
        _vectors(_rounded(rows, step, step / scale), length / scale)
        for rows, length, step, scale in zip(sets, lengths, steps, scales, strict=True)
    ]
    query_vectors, gallery_vectors = vectors[0], vectors[-1]
    if similarity == "dot":
        # A query's own length changes no ranking. Without it no product leaves float32's range.
        query_vectors = replace(query_vectors, weight=scales[0] / steps[0])
    return query_vectors, gallery_vectors


def _vectors(values: Tensor, lengths: Tensor) -> Vectors:
    squares = torch.empty(len(values), dtype=torch.float64, device=values.device)
    step = _rows_at_a_time(values)
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        squares[part] = values[part].double().square_().sum(1)
    weight = torch.where(squares > 0, lengths / _safe(squares).sqrt(), 1.0)
    return Vectors(values, squares, weight)


def _lengths(rows: _Rows) -> Tensor:
    """Length of each row, float64 [n].

    Summed by folding halves, element by element: the same row gives the same bits wherever it is,
    which a library's reduction does not promise.
    """
    lengths = torch.empty(len(rows.order), dtype=torch.float64, device=rows.values.device)
    for part, square in rows:
        square.square_()
        while (width := square.shape[1]) > 1:
            keep = width - width // 2
            square[:, : width // 2] += square[:, keep:]
            square = square[:, :keep]
        lengths[part] = square[:, 0].sqrt()
    return lengths


def _safe(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, lengths, 1.0)


def _power_of_two(lengths: Tensor) -> Tensor:
    """2^m with length in [0.7, 1.4) * 2^m, so that no product of two rows passes 2^53 grid steps."""
    lengths = _safe(lengths)
    mantissa, _ = torch.frexp(lengths)
    power = lengths / mantissa
    return torch.where(mantissa < 0.7, power / 2, power)


def _rounded(rows: _Rows, divisor: Tensor, scale: Tensor | None) -> Tensor:
    """float32 [n, d]: each row divided by its divisor, rounded to the grid, times its power of two."""
    shape = (len(rows.order), rows.values.shape[1])
    values = torch.empty(shape, dtype=torch.float32, device=rows.values.device)
    for part, row in rows:
        row.div_(divisor[part, None]).div_(GRID).round_().mul_(GRID)
        values[part] = (row if scale is None else row.mul_(scale[part, None])).float()
    return values


def _centre(rows: _Rows) -> Tensor:
    """A point near the middle of the rows, float64 [d].

    Distances do not change when it is subtracted, and the digits a common offset took up come back.
    Medians, because they do not depend on the order of the rows. Rounded to about half the spread of
    one coordinate, because that is near enough and leaves data on a lattice on the lattice.
    """
    values = rows.values
    step = max(1, (1 << 21) // len(values))
    middle = torch.cat(
        [part.float().median(0).values for part in values.split(step, dim=1)]
    ).double()
    lengths = _lengths(_Rows(values, rows.order, middle))
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return middle
    spread = lengths.median() / values.shape[1] ** 0.5
    step = _power_of_two(spread) / 2
    return torch.round(middle / step) * step


class Scorer:
    """Similarities between prepared queries and a prepared gallery, exact and near.

    query, gallery, similarity: as in `prepare`.  A similarity is larger for nearer items: the cosine,
    the inner product, or minus the squared distance (the last two times a power of two that is the
    same for all items a query is compared with).  `product` less `offset` orders items alike, up to
    rounding.
    """

    def __init__(
        self,
        query: tuple[Tensor, Tensor],
        gallery: tuple[Tensor, Tensor] | None,
        similarity: str,
    ):
        self.euclidean, self.dot = similarity == "euclidean", similarity == "dot"
        self.source = query
        self.query, self.gallery = prepare(query, gallery, similarity)
        self.dim = self.query.values.shape[1]
        self.half_squares = (self.gallery.squares / 2).float() if self.euclidean else None
        self.query_squares = self.query.squares.cpu().numpy()
        self.query_weight = self.query.weight.cpu().numpy()
        self.stray = float((self.gallery.weight - 1).abs().max()) + 2.0**-50
        longest = float(self.gallery.squares.max().sqrt())
        # Summing n float32 terms in any order errs by at most n u / (1 - n u) of the sum of their
        # magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1);
        # that sum is at most the product of the lengths. Four more roundings cover what follows
        # the product; the last term covers underflow.
        n = (self.dim + 4) * 2.0**-24
        factor, least = n / (1 - n) * 1.001, (self.dim + 4) * 2.0**-126
        lengths = np.sqrt(self.query_squares)
        reach = lengths * longest + (longest**2 / 2 if self.euclidean else 0.0)
        self.error = factor * reach + least
        self.distance_error = factor * (lengths + longest) ** 2 + least  # |q|^2 + |g|^2 - 2 q g
        self.trusted = self._bound_holds()

    def units(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The queries divided by their lengths, whatever the similarity: (rows, float64 [rows, d]).

        In chunks; not rounded to a grid. A zero vector stays zero.
        """
        values, order = self.source
        step = max(self.dim, UNITS_CHUNK // self.dim)
        for start in range(0, len(order), step):
            part = slice(start, start + step)
            rows = values[order[part]].float().double()
            yield part, rows.div_(_safe(rows.norm(dim=1))[:, None]).cpu().numpy()

    def product(self, rows: Tensor | slice, columns: slice, out: Tensor | None = None) -> Tensor:
        """Inner products in float32, [rows, columns]."""
        return torch.mm(self.query.values[rows], self.gallery.values[columns].T, out=out)

    def offset(self, columns: slice) -> Tensor | None:
        """What to subtract from the inner products with items to order them like the similarity."""
        return None if self.half_squares is None else self.half_squares[columns]

    def band(self, query: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), float32 [n], for similarities `score` [n] of queries `query` [n].

        An item whose `product` less `offset` is above `high` has a larger similarity, below `low` a
        smaller one; in between the exact similarity must tell.
        """
        centre = score.astype(np.float64)
        width = _last_place(centre)
        if self.euclidean:
            centre = (self.query_squares[query] + centre) / 2
            width = width / 2 + self.error[query]
        else:
            weight = self.query_weight[query]
            centre, width = centre / weight, width / weight
            width = (width + np.abs(centre) * self.stray) * 1.001 + self.error[query]
        return _outward(centre, width)

    def distance_band(self, query: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`band` for minus the squared distance as faiss computes it, of euclidean similarities."""
        centre = score.astype(np.float64)
        return _outward(centre, _last_place(centre) + self.distance_error[query])

    def exact(self, rows: Tensor | slice, columns: slice) -> Tensor:
        """Similarities, float32 [rows, columns]."""
        query, gallery = self.query.values[rows].double(), self.gallery.values[columns].double()
        return self._similarity(
            query @ gallery.T,
            lambda of_query: of_query[rows, None],
            lambda of_item: of_item[columns],
        )

    def comparable(self, scores: Tensor, rows: slice) -> Tensor:
        """Similarities [rows, n] of different queries on one scale, which a ranking has no need of.

        An inner product lacks its query's power of two; float64, so that putting it back loses nothing.
        """
        if not self.dot:
            return scores
        return scores.double().div_(self.query.weight[rows, None])

    def exact_blocks(self, rows: slice, columns: slice, blocks: int) -> Tensor:
        """Similarities within `blocks` equal consecutive parts of both slices, float32 [blocks, r, c]."""

        def split(x: Tensor) -> Tensor:
            return x.double().unflatten(0, (blocks, -1))

        query, gallery = split(self.query.values[rows]), split(self.gallery.values[columns])
        return self._similarity(
            torch.bmm(query, gallery.transpose(1, 2)),
            lambda of_query: split(of_query[rows])[:, :, None],
            lambda of_item: split(of_item[columns])[:, None, :],
        )

    def exact_pairs(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Similarities of the pairs (rows[i], columns[i]), float32 [n]."""
        device = self.query.values.device
        scores = [np.empty(0, dtype=np.float32)]
        step = _rows_at_a_time(self.query.values)
        for start in range(0, len(rows), step):
            i, j = (torch.from_numpy(x[start : start + step]).to(device) for x in (rows, columns))
            product = self.query.values[i].double().mul_(self.gallery.values[j]).sum(1)
            score = self._similarity(
                product, lambda of_query, i=i: of_query[i], lambda of_item, j=j: of_item[j]
            )
            scores.append(score.cpu().numpy())
        return np.concatenate(scores)

    def _similarity(
        self,
        product: Tensor,
        query: Callable[[Tensor], Tensor],
        gallery: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """float32 similarities from exact inner products.

        query, gallery: bring a vector over the queries or items into the shape of `product`.
        """
        if self.euclidean:
            product = product.mul_(2).sub_(
                query(self.query.squares) + gallery(self.gallery.squares)
            )
        else:
            product = product.mul_(query(self.query.weight)).mul_(gallery(self.gallery.weight))
        return product.float()

    def _bound_holds(self) -> bool:
        """Whether this machine's float32 products are float32 products, tried on one block.

        Reduced precision that was forced on from outside must cost time, not correctness.
        """
        rows, columns = slice(0, 128), slice(0, 512)
        near = self.product(rows, columns).double()
        exact = self.query.values[rows].double() @ self.gallery.values[columns].double().T
        error = torch.from_numpy(self.error[rows, None]).to(near.device)
        return bool(((near - exact).abs() <= error).all())


def _last_place(similarity: np.ndarray) -> np.ndarray:
    """One unit in the last place of a similarity, which is a float32, or a little more."""
    return np.abs(similarity) * 2.0**-23 + 2.0**-148


def _outward(centre: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 bounds of centre -+ width, rounded outward."""
    low, high = (centre - width).astype(np.float32), (centre + width).astype(np.float32)
    return np.nextafter(low, np.float32(-np.inf)), np.nextafter(high, np.float32(np.inf))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autograd, no autocast, no TF32 or bfloat16 in place of float32; put back afterwards."""
    cpu = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    flags = (torch.backends.cuda.matmul, cpu)
    before = [flag.fp32_precision for flag in flags]
    try:
        for flag in flags:
            flag.fp32_precision = "ieee"
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value
