"""Where the positives of each query stand among the gallery: exact, in bounded memory.

Every metric of this package is a function of how many gallery items lie above each positive and how
many tie with it. So nothing is sorted and no list of neighbours is kept: each query's positives are
scored exactly, and the gallery streams past in tiles of float32 products in which items above each
of these scores are counted. What a float32 product cannot decide is scored exactly (`scores.py`).

`backend="torch"` counts in tiles only. `backend="faiss"` first searches short lists with faiss, which
settle the positives near the top, and counts only for queries whose positives lie deeper.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dml.evaluation.scores import Scorer

SEGMENT = 256  # columns whose maximum is looked at before the columns themselves
TILE_ROWS, TILE_COLUMNS = 512, 4096  # a tile of 8 MB stays in a CPU's cache
GPU_TILE_ROWS, GPU_TILE_COLUMNS = 4096, 16384
LEVEL_BYTES = 96  # memory per (query, positive) pair while its rank is being found
SORT_FROM = 5  # positives per query from which sorting a tile beats comparing with each in turn
EXACT_PAIR_COST = 100  # scoring one pair alone costs about as much as this many in a product


@dataclass(frozen=True)
class Layout:
    """Queries and gallery grouped by class, so that the positives of a query are one range.

    Classes are ordered by their sizes.  query_order, gallery_order: positions in the caller's arrays.
    query_class [q], gallery_class [g]: class numbers in this order.  query_start, gallery_start
    [classes + 1]: where each class begins.  self_column [q]: where the gallery holds the query itself,
    or -1.  relevant [q]: number of positives.  All int64 on the CPU.
    """

    query_order: Tensor
    gallery_order: Tensor
    query_class: Tensor
    gallery_class: Tensor
    query_start: Tensor
    gallery_start: Tensor
    self_column: Tensor
    relevant: Tensor
    symmetric: bool

    @property
    def self_is_positive(self) -> Tensor:
        """Whether the query itself is in its class's range, bool [q]."""
        own = self.self_column.clamp(min=0)
        return (self.self_column >= 0) & (self.gallery_class[own] == self.query_class)


def layout(
    query_labels: np.ndarray, gallery_labels: np.ndarray | None, self_column: np.ndarray
) -> Layout:
    """Group by class.

    query_labels, gallery_labels: integers [q], [g]; None where the gallery is the query.
    self_column: int64 [q], the gallery position that is the query itself, or -1.
    """
    symmetric = gallery_labels is None
    labels = [query_labels] if symmetric else [query_labels, gallery_labels]
    _, codes = np.unique(np.concatenate(labels), return_inverse=True)
    query = codes[: len(query_labels)]
    gallery = query if symmetric else codes[len(query_labels) :]
    count = int(codes.max()) + 1
    query_size = np.bincount(query, minlength=count)
    gallery_size = np.bincount(gallery, minlength=count)
    rank = np.empty(count, dtype=np.int64)
    rank[np.lexsort((gallery_size, query_size))] = np.arange(count)
    query, gallery = rank[query], rank[gallery]
    query_order = np.argsort(query, kind="stable")
    gallery_order = np.argsort(gallery, kind="stable")
    place = np.empty(len(gallery), dtype=np.int64)
    place[gallery_order] = np.arange(len(gallery))
    own = self_column[query_order]
    own = np.where(own >= 0, place[own], -1)
    query, gallery = query[query_order], gallery[gallery_order]
    gallery_size = np.bincount(gallery, minlength=count)
    relevant = gallery_size[query] - ((own >= 0) & (gallery[own] == query))
    query_start = np.searchsorted(query, np.arange(count + 1))
    gallery_start = np.searchsorted(gallery, np.arange(count + 1))
    arrays = (query_order, gallery_order, query, gallery, query_start, gallery_start, own, relevant)
    return Layout(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays), symmetric)


@dataclass
class Levels:
    """The distinct similarities among each query's positives, best first: one entry per level.

    first: int64 [q + 1], where each query's levels begin.  query: int64 [n], ascending, from 0.
    score: float32 [n].  hits: positives at the level.  before: positives above it.  limit: the level
    matters only while fewer items than this lie above it.  low, high: float32 [n], see `Scorer.band`.
    above, tied: negatives above and at the level, found so far; int64 [n].
    """

    first: Tensor
    query: Tensor
    score: Tensor
    hits: Tensor
    before: Tensor
    limit: Tensor
    low: Tensor
    high: Tensor
    above: Tensor
    tied: Tensor

    def open(self, part: slice) -> Tensor:
        """Positions in `part` of the levels whose rank still matters."""
        wanted = self.above[part] + self.before[part] < self.limit[part]
        return wanted.nonzero()[:, 0] + part.start


@dataclass(frozen=True)
class Ranks:
    """Where the positives of n queries stand; the argument of every metric.

    start: int64 [n], where each query's levels begin; every query has at least one.  A level is a
    group of tied items that holds a positive: `above` items lie above it, `tied` items are in it,
    `hits` of them positive, and `before` positives lie above it; int64 [levels], best level first.
    relevant: int64 [n], positives of the query.  gallery: int64 [n], items the query is compared with.
    A level at or below the depth that was asked for may have any `above` not less than that depth.
    """

    start: np.ndarray
    above: np.ndarray
    tied: np.ndarray
    hits: np.ndarray
    before: np.ndarray
    relevant: np.ndarray
    gallery: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Depth:
    """How deep ranks must be known.

    best: for a query's best positive.  others: for the rest.  relevant: the rest also down to the
    number of positives.
    """

    best: int
    others: int
    relevant: bool


class Search:
    """Ranks of the positives, in chunks of queries.

    scorer holds vectors in the order of `layout`.  memory: bytes for everything that is not the
    embeddings or the prepared copy of them.
    """

    def __init__(self, scorer: Scorer, layout: Layout, depth: Depth, backend: str, memory: int):
        self.scorer, self.layout, self.depth = scorer, layout, depth
        self.faiss = backend == "faiss" and scorer.trusted
        self.device = scorer.query.values.device
        gpu = self.device.type != "cpu"
        # A tile needs itself, its transpose, the segments taken from it and their comparisons.
        elements = max(SEGMENT, memory // 64)
        self.columns = min(GPU_TILE_COLUMNS if gpu else TILE_COLUMNS, _up(len(scorer.gallery)))
        self.columns = max(SEGMENT, min(self.columns, elements // SEGMENT * SEGMENT))
        self.rows = max(1, min(GPU_TILE_ROWS if gpu else TILE_ROWS, elements // self.columns))
        self.pairs = max(1, memory // 4 // LEVEL_BYTES)
        self.memory = memory
        self.query_class = layout.query_class.to(self.device)
        self.gallery_class = layout.gallery_class.to(self.device)
        self.self_column = layout.self_column.to(self.device)
        self.relevant = layout.relevant.to(self.device)

    def chunks(self) -> Iterator[slice]:
        """Queries whose ranks fit in memory together."""
        ends = self.layout.relevant.cumsum(0)
        start, total = 0, len(ends)
        while start < total:
            done = int(ends[start - 1]) if start else 0
            stop = int(torch.searchsorted(ends, done + self.pairs, right=True))
            stop = max(start + 1, stop)
            yield slice(start, stop)
            start = stop

    def ranks(self, part: slice, progress: Callable[[int], None] = lambda _: None) -> Ranks:
        """Ranks of the queries in `part` that have a positive.

        progress: called with the number of similarities that were looked at.
        """
        levels = self._levels(part)
        if self.faiss:
            self._search_lists(levels, part)
        self._count(levels, part, progress)
        kept = self.relevant[part] > 0
        own = (self.self_column[part] >= 0).long()
        size = len(self.scorer.gallery) - own[kept]
        result = (
            levels.first[:-1][kept],
            levels.above + levels.before,
            levels.tied + levels.hits,
            levels.hits,
            levels.before,
            self.relevant[part][kept],
            size,
        )
        return Ranks(*(tensor.cpu().numpy() for tensor in result))

    # -- the positives

    def _levels(self, part: slice) -> Levels:
        scores = torch.cat([*self._positives(part), torch.empty(0, device=self.device)])
        relevant = self.relevant[part]
        query = torch.repeat_interleave(torch.arange(len(relevant), device=self.device), relevant)
        start = torch.ones(len(scores), dtype=torch.bool, device=self.device)
        start[1:] = (query[1:] != query[:-1]) | (scores[1:] != scores[:-1])
        at = start.nonzero()[:, 0]
        query, score = query[at], scores[at]
        first_positive = relevant.cumsum(0) - relevant
        before = at - first_positive[query]
        hits = torch.diff(at, append=at.new_tensor([len(scores)]))
        limit = torch.full_like(at, self.depth.others)
        if self.depth.relevant:
            limit = torch.maximum(limit, relevant[query])
        limit[before == 0] = limit[before == 0].clamp(min=self.depth.best)
        first = torch.searchsorted(query, torch.arange(len(relevant) + 1, device=self.device))
        low, high = self.scorer.band(query + part.start, score)
        zero = torch.zeros_like(at)
        return Levels(first, query, score, hits, before, limit, low, high, zero, zero.clone())

    def _positives(self, part: slice) -> Iterator[Tensor]:
        """Exact similarities of each query's positives, best first, query after query."""
        begin, columns = self.layout.query_start, self.layout.gallery_start
        sizes = torch.stack([begin.diff(), columns.diff()])
        changes = (sizes[:, 1:] != sizes[:, :-1]).any(0).nonzero()[:, 0] + 1
        run_end = torch.cat([changes, torch.tensor([sizes.shape[1]])])
        at = part.start
        while at < part.stop:
            label = int(self.layout.query_class[at])
            rows, width = sizes[:, label].tolist()
            pair_bytes = 8 * (width * rows + (width + rows) * self.scorer.dim)
            blocks = min(
                int(run_end[torch.searchsorted(run_end, label, right=True)]) - label,
                (part.stop - at) // rows,
                max(1, self.memory // 8 // pair_bytes),
            )
            if at != int(begin[label]) or blocks == 0:  # a part of one class
                blocks, rows = 1, min(part.stop, int(begin[label + 1])) - at
                rows = min(rows, max(1, self.memory // 8 // (8 * (width + self.scorer.dim))))
            stop = at + rows * blocks
            where = slice(int(columns[label]), int(columns[label + blocks]))
            if width:
                scores = self.scorer.exact_blocks(slice(at, stop), where, blocks).flatten(0, 1)
                offset = columns[self.layout.query_class[at:stop]]
                own = self.layout.self_column[at:stop] - offset
                has_self = self.layout.self_is_positive[at:stop].nonzero()[:, 0]
                scores[has_self.to(self.device), own[has_self].to(self.device)] = -torch.inf
                scores = scores.sort(dim=1, descending=True).values
                counts = self.relevant[at:stop, None]
                yield scores[torch.arange(width, device=self.device) < counts]
            at = stop

    # -- the rest of the gallery, by faiss

    def _search_lists(self, levels: Levels, part: slice) -> None:
        """Settle the levels that lie within short lists of nearest neighbours."""
        import faiss

        size = len(self.scorer.gallery)
        limits = self.relevant[part] if self.depth.relevant else torch.zeros(1, dtype=torch.int64)
        wanted = max(self.depth.others, int(limits.max()), min(self.depth.best, 10))
        # one more for the query itself, a few more so that the list's end is clearly below
        length = min(size, wanted + 1 + 8)
        if length > max(1024, size // 8):
            return  # counting is faster
        metric = faiss.METRIC_L2 if self.scorer.euclidean else faiss.METRIC_INNER_PRODUCT
        gallery = self.scorer.gallery.values.numpy()
        step = max(1, min(16384, self.memory // 4 // (length * 32)))
        for start in range(part.start, part.stop, step):
            rows = slice(start, min(start + step, part.stop))
            near, columns = faiss.knn(
                self.scorer.query.values[rows].numpy(), gallery, length, metric=metric
            )
            near, columns = torch.from_numpy(near), torch.from_numpy(columns)
            if self.scorer.euclidean:
                near.neg_()
            end = near[:, -1].clone() if length < size else torch.full((len(near),), -torch.inf)
            skip = self.gallery_class[columns] == self.query_class[rows, None]
            skip |= columns == self.self_column[rows, None]
            near.masked_fill_(skip, -torch.inf)
            self._settle(levels, rows.start - part.start, part.start, near, columns, end)

    def _settle(
        self, levels: Levels, row: int, query: int, near: Tensor, columns: Tensor, end: Tensor
    ) -> None:
        which = levels.open(_span(levels, row, row + len(near)))
        local = levels.query[which] - row
        low, high = self.scorer.band(levels.query[which] + query, levels.score[which], True)
        listed = torch.nn.functional.pad(near, (0, -near.shape[1] % 8), value=-torch.inf)
        above, maybe = _counts_by_sorting(listed, local, low, high)
        known = low > end[local]
        beyond = above + levels.before[which] >= levels.limit[which]
        levels.above[which[beyond]] = above[beyond]
        known &= ~beyond & (maybe <= EXACT_PAIR_COST)
        levels.above[which[known]] = above[known]
        doubt = known & (maybe > 0)
        entry, place = _between(near[local[doubt]], low[doubt], high[doubt])
        level = which[doubt][entry]
        self._score_pairs(levels, level, columns[local[doubt][entry], place], query)
        # settled: nothing more is to be counted for these
        levels.limit[which[known]] = -1

    # -- the rest of the gallery, in tiles

    def _count(self, levels: Levels, part: slice, progress: Callable[[int], None]) -> None:
        """Count the negatives above and at every open level."""
        size = len(self.scorer.gallery)
        pending = _Pending(self, levels, part.start)
        todo = levels.query[levels.open(slice(0, len(levels.query)))].unique()
        whole = self.layout.symmetric and len(todo) * 2 > size and part.stop - part.start == size
        if whole:
            todo = torch.arange(size, device=self.device)
        total = len(todo) * size
        seen = 0
        for start in range(0, len(todo), self.rows):
            block = todo[start : start + self.rows]
            rows = block + part.start
            begin = start if whole else 0
            edges = [begin, *range(start + len(block), size, self.columns), size] if whole else [
                *range(0, size, self.columns), size
            ]
            for left, right in zip(edges[:-1], edges[1:], strict=True):
                if left == right:
                    continue
                columns = slice(left, right)
                tile = self._tile(rows, columns)
                self._tally(levels, block, tile, columns, pending)
                seen += len(block) * (right - left)
                if whole and left > start:
                    across = torch.arange(left, right, device=self.device)
                    mirrored = self._padded(right - left, len(block))
                    mirrored[:, : len(block)] = tile[:, : right - left].T
                    self._tally(levels, across, mirrored, slice(start, start + len(block)), pending)
                    seen += len(block) * (right - left)
            pending.flush()
            progress(seen * (part.stop - part.start) * size // max(1, total) - 0)
        pending.flush()
