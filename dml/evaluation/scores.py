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

from collections.abc import Iterator
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

    values: float32 [n, d].  squares: float64 [n], squared lengths, exact.
    """

    values: Tensor
    squares: Tensor

    def __len__(self) -> int:
        return len(self.values)


def prepare(
    query: Tensor, gallery: Tensor | None, similarity: str
) -> tuple[Vectors, Vectors]:
    """Normalise (cosine), centre (euclidean), scale by powers of two and round to the grid.

    query [q, d], gallery [g, d] or None for the query itself; real numbers of any type, finite in
    float32, on one device.  Half-precision numbers become float32 before anything is computed.
    A row's result depends on that row (and, for euclidean and dot, on the set), never on its position.
    """
    if similarity == "cosine":
        # A zero vector has no direction; it stays zero, at similarity 0 to everything.
        unit = [_rounded(x, 1 / _safe(_lengths(x)), 1.0) for x in _both(query, gallery)]
        return _vectors(unit)
    centre = None
    if similarity == "euclidean":
        centre = _centre(query if gallery is None else gallery)
    sets = _both(query, gallery)
    steps = [_power_of_two(_lengths(x, centre)) for x in sets]
    # One scale for all keeps distances comparable; inner products allow one per set.
    scales = [step.max() for step in steps]
    if similarity == "euclidean":
        scales = [torch.stack(scales).max()] * len(sets)
    return _vectors(
        [
            _rounded(x, 1 / step, step / scale, centre)
            for x, step, scale in zip(sets, steps, scales, strict=True)
        ]
    )


def _both(query: Tensor, gallery: Tensor | None) -> list[Tensor]:
    return [query] if gallery is None else [query, gallery]


def _vectors(values: list[Tensor]) -> tuple[Vectors, Vectors]:
    sets = [Vectors(v, _squares(v)) for v in values]
    return sets[0], sets[-1]


def _chunks(x: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK // x.shape[1])
    for start in range(0, len(x), rows):
        yield slice(start, start + rows)


def _float64(x: Tensor, centre: Tensor | None = None) -> Tensor:
    x = x.detach().to(torch.float32).to(torch.float64, copy=True)
    return x if centre is None else x.sub_(centre)


def _lengths(x: Tensor, centre: Tensor | None = None) -> Tensor:
    """Length of each row, float64 [n].

    Summed by folding halves, element by element: the same row gives the same bits wherever it is,
    which a library's reduction does not promise.
    """
    lengths = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for part in _chunks(x):
        square = _float64(x[part], centre).square_()
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


def _rounded(
    x: Tensor, factor: Tensor, scale: float | Tensor, centre: Tensor | None = None
) -> Tensor:
    """float32 of (x - centre) * factor, rounded to the grid, then times `scale` (powers of two)."""
    values = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for part in _chunks(x):
        row = _float64(x[part], centre).mul_(factor[part, None])
        row = row.div_(GRID).round_().mul_(GRID)
        if isinstance(scale, Tensor):
            row = row.mul_(scale[part, None])
        values[part] = row.float()
    return values


def _squares(values: Tensor) -> Tensor:
    squares = torch.empty(len(values), dtype=torch.float64, device=values.device)
    for part in _chunks(values):
        squares[part] = values[part].double().square_().sum(1)
    return squares


def _centre(x: Tensor) -> Tensor:
    """A point near the middle of the rows, float64 [d].

    Distances do not change when it is subtracted, and the digits a common offset took up come back.
    Medians, because they do not depend on the order of the rows. Rounded to about half the spread of
    one coordinate, because that is near enough and leaves data on a lattice on the lattice.
    """
    columns = max(1, CHUNK * 8 // len(x))
    middle = [x[:, j : j + columns].detach().float().median(0).values for j in range(0, x.shape[1], columns)]
    middle = torch.cat(middle).double()
    lengths = _lengths(x, middle)
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return middle
    step = _power_of_two(lengths.median() / x.shape[1] ** 0.5) / 2
    return torch.round(middle / step) * step


class Scorer:
    """Similarities between prepared queries and a prepared gallery, exact and near.

    A similarity is larger for nearer items: the cosine, the inner product (times a power of two per
    query), or minus the squared distance (times a power of two).  `near` returns a float32 quantity
    that orders items alike, up to rounding.
    """

    def __init__(self, query: Tensor, gallery: Tensor | None, similarity: str):
        self.euclidean = similarity == "euclidean"
        self.query, self.gallery = prepare(query, gallery, similarity)
        self.dim = query.shape[1]
        self.half_squares = (self.gallery.squares / 2).float() if self.euclidean else None
        longest = self.gallery.squares.max().sqrt()
        # Summing n float32 terms in any order errs by at most n u / (1 - n u) of the sum of their
        # magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1);
        # that sum is at most the product of the lengths. Four more roundings cover what follows
        # the product; the last term covers underflow.
        n = (self.dim + 4) * 2.0**-24
        if n >= 0.5:
            raise ValueError(f"embeddings have {self.dim} dimensions; at most 2^23 are supported")
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

    def near(self, product: Tensor, columns: slice) -> Tensor:
        """The float32 quantity that orders items like the similarity, from `product`, [rows, columns]."""
        return product if self.half_squares is None else product - self.half_squares[columns]

    def band(self, query: Tensor, score: Tensor, from_faiss: bool = False) -> tuple[Tensor, Tensor]:
        """(low, high), float32 [n], for similarities `score` [n] of queries `query` [n].

        An item whose near value is above `high` has a larger similarity, below `low` a smaller one;
        in between the exact similarity must tell.  `from_faiss`: the near value is what faiss
        returns (the inner product, or minus the squared distance).
        """
        centre = score.double()
        # one unit in the last place of the similarity, itself a float32
        width = centre.abs() * 2.0**-23 + 2.0**-148
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
        gallery = self.gallery.values[columns].double()
        product = self.query.values[rows].double() @ gallery.T
        return self._similarity(
            product, self.query.squares[rows, None], self.gallery.squares[None, columns]
        )

    def exact_blocks(self, rows: slice, columns: slice, blocks: int) -> Tensor:
        """Similarities within `blocks` equal consecutive parts of both slices, float32 [blocks, r, c]."""
        query = self.query.values[rows].double().unflatten(0, (blocks, -1))
        gallery = self.gallery.values[columns].double().unflatten(0, (blocks, -1))
        return self._similarity(
            torch.bmm(query, gallery.transpose(1, 2)),
            self.query.squares[rows].unflatten(0, (blocks, -1))[:, :, None],
            self.gallery.squares[columns].unflatten(0, (blocks, -1))[:, None, :],
        )

    def exact_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Similarities of the pairs (rows[i], columns[i]), float32 [n]."""
        scores = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        step = max(1, CHUNK // self.dim)
        for start in range(0, len(rows), step):
            i, j = rows[start : start + step], columns[start : start + step]
            product = self.query.values[i].double().mul_(self.gallery.values[j]).sum(1)
            scores[start : start + step] = self._similarity(
                product, self.query.squares[i], self.gallery.squares[j]
            )
        return scores

    def _similarity(self, product: Tensor, query: Tensor, gallery: Tensor) -> Tensor:
        if self.euclidean:
            product = product.mul_(2).sub_(query + gallery)
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
