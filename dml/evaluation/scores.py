"""What the similarity of a pair is, exactly, and how far a float32 matrix product may be from it.

Ties decide metrics, so a pair must score the same wherever it sits in a batch, on every backend and
for any number of threads. Floating point sums do not: a matrix product rounds by blocks. Therefore
each vector is first rounded to a grid of 2^-26 of its length. Products of two such vectors are
multiples of a grid of 2^-52 and their partial sums stay below 2^53 steps of it, so a float64 sum of
them is *exact*, in any order. The similarity of a pair is that exact number, rounded to float32.
Two items tie when these float32 numbers are equal.

A float32 matrix product is faster and only near. `Scorer.band` gives, for each similarity, an interval
outside which the float32 product proves the order; pairs inside it are scored exactly.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

SIMILARITIES = ("cosine", "dot", "euclidean")
GRID = 2.0**-26  # of a vector's length; see the module's text
CHUNK = 1 << 18  # elements prepared at a time: a few float64 copies of it stay in cache


@dataclass(frozen=True)
class Vectors:
    """Rows on their grids.

    values: float32 [n, d], of length at most about 1.4.  squares: float64 [n], squared lengths, exact.
    lift: float64 [n], powers of two that make all lengths alike; ones unless the similarity is dot.
    """

    values: Tensor
    squares: Tensor
    lift: Tensor

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class _Rows:
    """The rows of `values` [n, d] in the order `order` [n], less `centre`, as float64 parts."""

    values: Tensor
    order: Tensor
    centre: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        step = max(1, CHUNK // self.values.shape[1])
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
    if similarity == "cosine":
        # A zero vector has no direction; it stays zero, at similarity 0 to everything.
        return _vectors([_rounded(rows, _safe(_lengths(rows)), None) for rows in sets], None)
    if similarity == "euclidean":
        centre = _centre(sets[-1])
        sets = [_Rows(rows.values, rows.order, centre) for rows in sets]
    steps = [_power_of_two(_lengths(rows)) for rows in sets]
    # One scale for all keeps distances comparable; inner products allow one per set.
    scales = [step.max() for step in steps]
    if similarity == "euclidean":
        scales = [torch.stack(scales).max()] * len(sets)
    values = [
        _rounded(rows, step, step / scale)
        for rows, step, scale in zip(sets, steps, scales, strict=True)
    ]
    # A query's own length changes no ranking. Undone, it cannot push products below float32's range.
    lifts = [scale / step for step, scale in zip(steps, scales, strict=True)]
    return _vectors(values, lifts if similarity == "dot" else None)


def _vectors(values: list[Tensor], lifts: list[Tensor] | None) -> tuple[Vectors, Vectors]:
    sets = []
    for i, value in enumerate(values):
        squares = torch.empty(len(value), dtype=torch.float64, device=value.device)
        step = max(1, CHUNK // value.shape[1])
        for start in range(0, len(value), step):
            part = slice(start, start + step)
            squares[part] = value[part].double().square_().sum(1)
        sets.append(
            Vectors(value, squares, torch.ones_like(squares) if lifts is None else lifts[i])
        )
    return sets[0], sets[-1]


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
    values = torch.empty(len(rows.order), rows.values.shape[1], device=rows.values.device)
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
    step = max(1, 8 * CHUNK // len(values))
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
        self.kind = similarity
        self.euclidean = similarity == "euclidean"
        self.query, self.gallery = prepare(query, gallery, similarity)
        self.dim = self.query.values.shape[1]
        self.half_squares = (self.gallery.squares / 2).float() if self.euclidean else None
        longest = self.gallery.squares.max().sqrt()
        # Summing n float32 terms in any order errs by at most n u / (1 - n u) of the sum of their
        # magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1);
        # that sum is at most the product of the lengths. Four more roundings cover what follows
        # the product; the last term covers underflow.
        n = (self.dim + 4) * 2.0**-24
        reach = self.query.squares.sqrt() * longest
        if self.euclidean:
            reach = reach + longest**2 / 2
        self.error = n / (1 - n) * 1.001 * reach + (self.dim + 4) * 2.0**-126
        # faiss sums |q|^2, |g|^2 and -2 q g
        distance = (self.query.squares.sqrt() + longest) ** 2
        self.distance_error = n / (1 - n) * 1.001 * distance + (self.dim + 4) * 2.0**-126
        self.trusted = self._bound_holds()

    def product(self, rows: Tensor | slice, columns: slice, out: Tensor | None = None) -> Tensor:
        """Inner products in float32, [rows, columns]."""
        return torch.mm(self.query.values[rows], self.gallery.values[columns].T, out=out)

    def offset(self, columns: slice) -> Tensor | None:
        """What to subtract from the inner products with items to order them like the similarity."""
        return None if self.half_squares is None else self.half_squares[columns]

    def band(self, query: Tensor, score: Tensor, from_faiss: bool = False) -> tuple[Tensor, Tensor]:
        """(low, high), float32 [n], for similarities `score` [n] of queries `query` [n].

        An item whose near value is above `high` has a larger similarity, below `low` a smaller one;
        in between the exact similarity must tell.  `from_faiss`: the near value is what faiss
        returns (the inner product, or minus the squared distance).
        """
        lift = self.query.lift[query]
        centre = score.double() / lift
        # one unit in the last place of the similarity, itself a float32
        width = centre.abs() * 2.0**-23 + 2.0**-148 / lift
        if not self.euclidean:
            width = width + self.error[query]
        elif from_faiss:
            width = width + self.distance_error[query]
        else:
            centre = (self.query.squares[query] + centre) / 2
            width = width / 2 + self.error[query]
        width = width + centre.abs() * 2.0**-50
        down = torch.tensor(-torch.inf, device=score.device)
        low = torch.nextafter((centre - width).float(), down)
        high = torch.nextafter((centre + width).float(), -down)
        return low, high

    def exact(self, rows: Tensor | slice, columns: slice) -> Tensor:
        """Similarities, float32 [rows, columns]."""
        query, gallery = self.query.values[rows].double(), self.gallery.values[columns].double()
        return self._similarity(
            query @ gallery.T,
            lambda of_query: of_query[rows, None],
            lambda of_item: of_item[columns],
        )

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

    def exact_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Similarities of the pairs (rows[i], columns[i]), float32 [n]."""
        scores = [torch.empty(0, device=rows.device)]
        step = max(1, CHUNK // self.dim)
        for i, j in zip(rows.split(step), columns.split(step), strict=True):
            product = self.query.values[i].double().mul_(self.gallery.values[j]).sum(1)
            scores.append(
                self._similarity(
                    product, lambda of_query, i=i: of_query[i], lambda of_item, j=j: of_item[j]
                )
            )
        return torch.cat(scores)

    def _similarity(
        self,
        product: Tensor,
        query: Callable[[Tensor], Tensor],
        gallery: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """float32 similarities from exact inner products.

        query, gallery: bring a vector over the queries or items into the shape of `product`.
        """
        if self.kind == "euclidean":
            product = product.mul_(2).sub_(
                query(self.query.squares) + gallery(self.gallery.squares)
            )
        elif self.kind == "dot":
            product = product.mul_(query(self.query.lift))
        return product.float()

    def _bound_holds(self) -> bool:
        """Whether this machine's float32 products are float32 products, tried on one block.

        Reduced precision that was forced on from outside must cost time, not correctness.
        """
        rows, columns = slice(0, 128), slice(0, 512)
        near = self.product(rows, columns).double()
        exact = self.query.values[rows].double() @ self.gallery.values[columns].double().T
        return bool(((near - exact).abs() <= self.error[rows, None]).all())


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autograd, no autocast, no TF32 or bfloat16 in place of float32; put back afterwards."""
    flags = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [flag.fp32_precision for flag in flags]
    try:
        for flag in flags:
            flag.fp32_precision = "ieee"
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value
