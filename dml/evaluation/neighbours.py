"""Where the positives of each query stand among the gallery: exact, in bounded memory.

Every metric of this package is a function of how many gallery items lie above each positive and how
many tie with it. So nothing is sorted and no list of neighbours is kept: each query's positives are
scored exactly, and the gallery streams past in tiles of float32 products in which items above each
of these scores are counted. What a float32 product cannot decide is scored exactly (`scores.py`).

`backend="torch"` counts in tiles only. `backend="faiss"` first searches short lists with faiss, which
settle the positives near the top, and counts only for queries whose positives lie deeper.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dml.evaluation.scores import Scorer

SEGMENT = 128  # items whose maximum is looked at before the items themselves
CPU_TILE, GPU_TILE = 1 << 22, 1 << 26  # similarities in a tile: 16 MB stay near a CPU's cores
COMPARE_WIDTH, SORT_WIDTH = 1 << 12, 1 << 14  # items side by side in a tile
TILE_COPIES = 8  # tiles' worth of memory in use at once: buffers, pieces, comparisons, float64
LEVEL_BYTES = 128  # memory per positive while its rank is being found
SORT_FROM = 5  # open levels per query from which sorting a tile beats comparing with each in turn
MANY = 16  # levels per query from which that holds although most close after a few tiles
PAIR_COST = 100  # scoring one pair by itself costs about as much as this many in a product
SHORT_LIST = 10  # neighbours faiss searches where Recall@K alone would want deeper lists


@dataclass(frozen=True)
class Layout:
    """Queries and gallery grouped by class, so that the positives of a query are one range.

    Classes are ordered by their sizes.  query_order, gallery_order: positions in the caller's arrays.
    query_class [q], gallery_class [g]: class numbers in this order.  query_start, gallery_start
    [classes + 1]: where each class begins.  self_column [q]: where the gallery holds the query itself,
    or -1.  self_in_class [q]: whether that is within its class's range.  relevant [q]: number of
    positives.  On the CPU, int64 (self_in_class bool).
    """

    query_order: Tensor
    gallery_order: Tensor
    query_class: Tensor
    gallery_class: Tensor
    query_start: Tensor
    gallery_start: Tensor
    self_column: Tensor
    self_in_class: Tensor
    relevant: Tensor
    symmetric: bool


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
    query_start = np.searchsorted(query, np.arange(count + 1))
    gallery_start = np.searchsorted(gallery, np.arange(count + 1))
    in_class = (own >= 0) & (gallery[own] == query)
    relevant = np.diff(gallery_start)[query] - in_class
    order = (query_order, gallery_order)
    rest = (query, gallery, query_start, gallery_start, own, in_class, relevant)
    return Layout(*(torch.from_numpy(a) for a in (*order, *rest)), symmetric)


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

    def open(self, first: int, last: int) -> Tensor:
        """The levels of queries first..last whose rank still matters, ascending."""
        start, stop = int(self.first[first]), int(self.first[last + 1])
        part = slice(start, stop)
        return (self.above[part] + self.before[part] < self.limit[part]).nonzero()[:, 0] + start


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
        tile = CPU_TILE if self.device.type == "cpu" else GPU_TILE
        whole = _up(len(scorer.query)) * _up(len(scorer.gallery))
        self.elements = min(tile, whole, max(SEGMENT**2, memory // 2 // TILE_COPIES // 4))
        # Tiles share memory: fresh from the system it costs more than filling it.
        self.buffers = torch.empty(3, self.elements, device=self.device)
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

    def ranks(self, part: slice, progress: Callable[[float], None] | None = None) -> Ranks:
        """Ranks of the queries in `part` that have a positive.

        progress: called with the share of this part that is done, in (0, 1].
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
                has_self = self.layout.self_in_class[at:stop].nonzero()[:, 0]
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
        depth = max(self.depth.others, min(self.depth.best, SHORT_LIST))
        if self.depth.relevant:
            depth = max(depth, int(self.relevant[part].max()))
        # One more for the query itself, a few more so that the list's end lies clearly below.
        length = min(size, depth + 1 + 8)
        if length > max(1024, size // 8):
            return  # counting is faster
        metric = faiss.METRIC_L2 if self.scorer.euclidean else faiss.METRIC_INNER_PRODUCT
        gallery = self.scorer.gallery.values.numpy()
        step = max(1, min(16384, self.memory // 4 // (length * 32)))
        for start in range(part.start, part.stop, step):
            rows = slice(start, min(start + step, part.stop))
            found = faiss.knn(
                self.scorer.query.values[rows].numpy(), gallery, length, metric=metric
            )
            near, columns = torch.from_numpy(found[0]), torch.from_numpy(found[1])
            if self.scorer.euclidean:
                near = -near
            end = near[:, -1].clone() if length < size else near.new_full((len(near),), -torch.inf)
            skip = self.gallery_class[columns] == self.query_class[rows, None]
            skip |= columns == self.self_column[rows, None]
            near.masked_fill_(skip, -torch.inf)
            self._settle(levels, part.start, rows, near, columns, end)

    def _settle(
        self, levels: Levels, origin: int, rows: slice, near: Tensor, columns: Tensor, end: Tensor
    ) -> None:
        """Use the lists of `rows`: near and columns [rows, length], best first; end: the last value."""
        which = levels.open(rows.start - origin, rows.stop - origin - 1)
        row = levels.query[which] - (rows.start - origin)
        low, high = self.scorer.band(levels.query[which] + origin, levels.score[which], True)
        above, maybe = _count_by_sorting(near[:, None], row, low, high)
        known = (low > end[row]) & (maybe <= PAIR_COST)
        # Whatever the list does not show can only add to these.
        beyond = above + levels.before[which] >= levels.limit[which]
        levels.above[which[known | beyond]] = above[known | beyond]
        levels.limit[which[known & ~beyond]] = -1  # closed: the tiles must not count again
        doubt = (known & ~beyond & (maybe > 0)).nonzero()[:, 0]
        entry, place = _between(near[:, None], row[doubt], low[doubt], high[doubt])
        self._resolve(levels, origin, [(which[doubt][entry], columns[row[doubt][entry], place])])

    # -- the rest of the gallery, in tiles

    def _count(self, levels: Levels, part: slice, progress: Callable[[float], None] | None) -> None:
        """Count the negatives above and at every open level."""
        queries, size = part.stop - part.start, len(self.scorer.gallery)
        todo, counts = levels.query[levels.open(0, queries - 1)].unique(return_counts=True)
        # Few levels are compared with each item, and where queries and gallery are one set a tile
        # then serves its rows and its columns. Many are looked up in sorted rows, the longer the better.
        many = int(counts.sum()) > MANY * len(todo)
        mirror = self.layout.symmetric and queries == size and 2 * len(todo) > size and not many
        if mirror:
            todo = torch.arange(queries, device=self.device)
        width = min(_up(size), SORT_WIDTH if many else COMPARE_WIDTH)
        width = min(width, self.elements // SEGMENT**2 * SEGMENT)
        height = self.elements // width // SEGMENT * SEGMENT
        doubts: list[tuple[Tensor, Tensor]] = []
        seen = 0
        for start in range(0, len(todo), height):
            block = todo[start : start + height]
            stop = start + len(block)
            edges = [*range(stop if mirror else 0, size, width), size]
            if mirror:
                edges = [start, *edges] if stop < size else [start, size]
            for left, right in pairwise(edges):
                tile = self._tile(part.start, block, left, right)
                near = self._near(tile, left, right, rows=False)
                doubts += self._tally(levels, part.start, block, near, left, right)
                seen += len(block) * (right - left)
                if mirror and left > start:
                    across = torch.arange(left, right, device=self.device)
                    near = self._near(tile, start, stop, rows=True)
                    doubts += self._tally(levels, part.start, across, near, start, stop)
                    seen += len(block) * (right - left)
            self._resolve(levels, part.start, doubts)
            if progress is not None:
                progress(seen / (len(todo) * size))

    def _space(self, rows: int, columns: int, buffer: int) -> Tensor:
        """Memory for [rows, columns], both rounded up to whole segments, the surplus at -inf."""
        full_rows, full_columns = _up(rows), _up(columns)
        space = self.buffers[buffer, : full_rows * full_columns].view(full_rows, full_columns)
        space[rows:] = -torch.inf
        space[:, columns:] = -torch.inf
        return space

    def _tile(self, origin: int, block: Tensor, left: int, right: int) -> Tensor:
        """Inner products [block, left:right], all that is no negative at -inf, in whole segments."""
        first, last = int(block[0]) + origin, int(block[-1]) + origin
        rows = slice(first, last + 1) if last - first + 1 == len(block) else block + origin
        tile = self._space(len(block), right - left, buffer=0)
        inside = tile[: len(block), : right - left]
        self.scorer.product(rows, slice(left, right), out=inside)
        starts, classes = self.layout.gallery_start, self.layout.query_class
        low = max(left, int(starts[classes[first]]))
        high = min(right, int(starts[classes[last] + 1]))
        if low < high:
            same = self.query_class[rows, None] == self.gallery_class[None, low:high]
            inside[:, low - left : high - left].masked_fill_(same, -torch.inf)
        own = self.self_column[rows] - left
        row = ((own >= 0) & (own < right - left)).nonzero()[:, 0]
        inside[row, own[row]] = -torch.inf
        return tile

    def _near(self, tile: Tensor, start: int, stop: int, rows: bool) -> Tensor:
        """What the items start:stop, the columns (or rows) of `tile`, are compared by.

        Returns a view [queries, segments, SEGMENT]: for rows=True the tile seen from its columns.
        """
        offset = self.scorer.offset(slice(start, stop))
        if offset is not None:
            offset = torch.nn.functional.pad(offset, (0, _up(len(offset)) - len(offset)))
            out = self.buffers[1, : tile.numel()].view_as(tile)
            tile = torch.sub(tile, offset[:, None] if rows else offset, out=out)
        if rows:
            return tile.unflatten(0, (-1, SEGMENT)).permute(2, 0, 1)
        return tile.unflatten(1, (-1, SEGMENT))

    def _tally(
        self, levels: Levels, origin: int, block: Tensor, near: Tensor, left: int, right: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Count the items left:right for the open levels of the queries in `block`.

        near: from `_near`.  Returns (levels, items) of the pairs that the products left in doubt.
        """
        which = levels.open(int(block[0]), int(block[-1]))
        if not len(which):
            return []
        row = torch.searchsorted(block, levels.query[which])
        low, high = levels.low[which], levels.high[which]
        if not self.scorer.trusted:  # everything is in doubt
            low = torch.full_like(low, torch.finfo(low.dtype).min)
            high = torch.full_like(high, torch.inf)
        many = len(which) > SORT_FROM * len(block)
        count = _count_by_sorting if many else _count_by_comparing
        above, maybe = count(near, row, low, high)
        # Doubts about a level that is now known to lie too deep do not matter.
        deep = levels.above[which] + above + levels.before[which] >= levels.limit[which]
        doubtful = ((maybe > 0) & ~deep).nonzero()[:, 0]
        doubts = []
        if len(doubtful):
            rows = row[doubtful].unique()
            if int(maybe[doubtful].sum()) * PAIR_COST > len(rows) * (right - left):
                # Much of the tile is in doubt (a collapsed model, say): score these rows exactly.
                again = torch.isin(row, rows)
                exact = self._space(len(rows), right - left, buffer=2)
                exact[: len(rows), : right - left] = self.scorer.exact(
                    block[rows] + origin, slice(left, right)
                )
                exact = exact.unflatten(1, (-1, SEGMENT))
                exact[: len(rows)].masked_fill_(near[rows] == -torch.inf, -torch.inf)
                score = levels.score[which[again]]
                place = torch.searchsorted(rows, row[again])
                above[again], tied = count(exact, place, score, score)
                levels.tied[which[again]] += tied
            else:
                entry, item = _between(near, row[doubtful], low[doubtful], high[doubtful])
                doubts.append((which[doubtful][entry], item + left))
        levels.above[which] += above
        return doubts

    def _resolve(self, levels: Levels, origin: int, doubts: list[tuple[Tensor, Tensor]]) -> None:
        """Score pairs (level, column) exactly, add them to the counts, empty the list."""
        if not doubts:
            return
        level = torch.cat([pair[0] for pair in doubts])
        column = torch.cat([pair[1] for pair in doubts])
        doubts.clear()
        score = self.scorer.exact_pairs(levels.query[level] + origin, column)
        levels.above.index_add_(0, level, (score > levels.score[level]).long())
        levels.tied.index_add_(0, level, (score == levels.score[level]).long())


def _up(columns: int) -> int:
    return -(-columns // SEGMENT) * SEGMENT


def _count_by_comparing(
    near: Tensor, row: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """For each i: how many of near[row[i]] are above high[i], and how many in [low[i], high[i]].

    near: float32 [rows, segments, SEGMENT].  row: int64 [n].  Returns two int64 [n].
    """
    # Most segments hold nothing as near as the level, which their maximum shows.
    columns = near.stride(0) == 1  # a tile seen from its columns; reduce along memory
    largest = near.permute(1, 2, 0).amax(1).T if columns else near.amax(2)
    entry, segment = (largest[row] >= low[:, None]).nonzero(as_tuple=True)
    above = torch.zeros(len(row), dtype=torch.int64, device=near.device)
    least = torch.zeros_like(above)
    step = max(1, near.numel() // near.shape[2] // 2)
    for i, s in zip(entry.split(step), segment.split(step), strict=True):
        values = near[row[i], s]
        over = torch.empty_like(values)  # float: on a CPU, faster to fill and to sum than bool
        above.index_add_(0, i, torch.gt(values, high[i, None], out=over).sum(1).long())
        least.index_add_(0, i, torch.ge(values, low[i, None], out=over).sum(1).long())
    return above, least - above


def _count_by_sorting(
    near: Tensor, row: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as `_count_by_comparing`, for many levels a row.  row must ascend."""
    near = near.flatten(1).contiguous()
    if near.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(near.numpy(), axis=1))  # faster than torch's there
    else:
        ordered = near.sort(dim=1).values
    # Levels of a row side by side: [rows, most levels of any row].
    counts = torch.bincount(row, minlength=len(near))
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    bounds = torch.full((len(near), int(counts.max())), torch.inf, device=near.device)
    bounds[row, slot] = high
    above = near.shape[1] - torch.searchsorted(ordered, bounds, right=True)[row, slot]
    bounds[row, slot] = low
    least = near.shape[1] - torch.searchsorted(ordered, bounds)[row, slot]
    return above, least - above


def _between(near: Tensor, row: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(i, item) of every near[row[i], item] in [low[i], high[i]], segments end to end; int64 each."""
    entries, items = [row[:0]], [row[:0]]
    step = max(1, len(near) // 2)
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        values = near[row[part]].flatten(1)
        inside = (values >= low[part, None]) & (values <= high[part, None])
        entry, item = inside.nonzero(as_tuple=True)
        entries.append(entry + start)
        items.append(item)
    return torch.cat(entries), torch.cat(items)
