"""Where the positives of each query stand among the gallery: exact, in bounded memory.

Every metric of this package is a function of how many gallery items lie above each positive and how
many tie with it. So nothing is sorted and no list of neighbours is kept: each query's positives are
scored exactly, and the gallery streams past in tiles of float32 products in which items above each
of these scores are counted. What a float32 product cannot decide is scored exactly (`scores.py`).

Short lists of nearest neighbours settle the positives near the top at once. `backend="faiss"` always
searches them first, `backend="torch"` where queries have many positives; both count only for queries
whose positives lie deeper.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dml.evaluation.ranks import Depth, Ranks
from dml.evaluation.scores import Scorer

SEGMENT = 128  # items whose maximum is looked at before the items themselves
CPU_TILE, GPU_TILE = 1 << 22, 1 << 26  # similarities in a tile: 16 MB stay near a CPU's cores
COMPARE_WIDTH, SORT_WIDTH = 1 << 12, 1 << 14  # items side by side in a tile
TILE_COPIES = 8  # tiles' worth of memory in use at once: buffers, pieces, comparisons, float64
LEVEL_BYTES = 128  # memory per positive while its rank is being found
SORT_FROM = 5  # open levels per query from which sorting a tile beats comparing with each in turn
MANY = 16  # levels per query from which that holds although most close after a few tiles
PAIR_COST = 100  # scoring one pair by itself costs about as much as this many in a product
SHORT_LIST = 10  # neighbours to list where Recall@K alone would want deeper lists
LIST_ROWS = 32  # queries side by side below which a product with the whole gallery is slow


@dataclass(frozen=True)
class Layout:
    """Queries and gallery grouped by class, so that the positives of a query are one range.

    Classes are ordered by their sizes.  query_order, gallery_order: positions in the caller's arrays.
    query_class [q], gallery_class [g]: class numbers in this order.  query_start, gallery_start
    [classes + 1]: where each class begins.  self_column [q]: where the gallery holds the query itself,
    or -1.  self_in_class [q]: whether that is within its class's range.  relevant [q]: number of
    positives.  int64 (self_in_class bool).  symmetric: the gallery is the queries.
    """

    query_order: np.ndarray
    gallery_order: np.ndarray
    query_class: np.ndarray
    gallery_class: np.ndarray
    query_start: np.ndarray
    gallery_start: np.ndarray
    self_column: np.ndarray
    self_in_class: np.ndarray
    relevant: np.ndarray
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
    return Layout(*order, *rest, symmetric)


@dataclass
class Levels:
    """The distinct similarities among each query's positives, best first: one entry per level.

    first: int64 [q + 1], where each query's levels begin.  query: int64 [n], ascending, from 0.
    score: float32 [n].  hits: positives at the level.  before: positives above it.  limit: the level
    matters only while fewer items than this lie above it.  low, high: float32 [n], see `Scorer.band`.
    above, tied: negatives above and at the level, found so far; int64 [n].
    """

    first: np.ndarray
    query: np.ndarray
    score: np.ndarray
    hits: np.ndarray
    before: np.ndarray
    limit: np.ndarray
    low: np.ndarray
    high: np.ndarray
    above: np.ndarray
    tied: np.ndarray

    def open(self, first: int, last: int) -> np.ndarray:
        """The levels of queries first..last whose rank still matters, ascending."""
        part = slice(self.first[first], self.first[last + 1])
        wanted = self.above[part] + self.before[part] < self.limit[part]
        return np.flatnonzero(wanted) + part.start


class Search:
    """Ranks of the positives, in chunks of queries.

    scorer holds vectors in the order of `layout`.  memory: bytes for everything that is not the
    embeddings or the prepared copy of them.

    Tiles are tensors on the embeddings' device. The books about levels are NumPy's: they are small, and
    sharing small steps out to threads costs more than it saves, most of all on a busy machine.
    """

    def __init__(self, scorer: Scorer, layout: Layout, depth: Depth, backend: str, memory: int):
        self.scorer, self.layout, self.depth = scorer, layout, depth
        self.faiss = backend == "faiss" and scorer.trusted
        self.device = scorer.query.values.device
        tile = CPU_TILE if self.device.type == "cpu" else GPU_TILE
        whole = _up(len(scorer.query)) * _up(len(scorer.gallery))
        self.elements = min(tile, whole, max(SEGMENT**2, memory // 2 // TILE_COPIES // 4))
        # Tiles share memory: fresh from the system it costs more than filling it.
        self.buffers = torch.empty(3, self.elements, dtype=torch.float32, device=self.device)
        self.pairs = max(1, memory // 4 // LEVEL_BYTES)
        self.memory = memory
        self.query_class = torch.from_numpy(layout.query_class).to(self.device)
        self.gallery_class = torch.from_numpy(layout.gallery_class).to(self.device)
        self.self_column = torch.from_numpy(layout.self_column).to(self.device)

    def chunks(self) -> Iterator[slice]:
        """Queries whose ranks fit in memory together."""
        ends = self.layout.relevant.cumsum()
        start = 0
        while start < len(ends):
            done = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + self.pairs, side="right")))
            yield slice(start, stop)
            start = stop

    def ranks(self, part: slice, progress: Callable[[float], None] | None = None) -> Ranks:
        """Ranks of the queries in `part` that have a positive; there must be one.

        progress: called with the share of this part that is done, in (0, 1].
        """
        levels = self._levels(part)
        if self.faiss or (
            self.scorer.trusted and len(levels.query) > MANY * (part.stop - part.start)
        ):
            self._search_lists(levels, part)
        self._count(levels, part, progress)
        relevant = self.layout.relevant[part]
        kept = relevant > 0
        own = self.layout.self_column[part] >= 0
        return Ranks(
            start=levels.first[:-1][kept],
            above=levels.above + levels.before,
            tied=levels.tied + levels.hits,
            hits=levels.hits,
            before=levels.before,
            relevant=relevant[kept],
            gallery=len(self.scorer.gallery) - own[kept],
        )

    # -- the positives

    def _levels(self, part: slice) -> Levels:
        score = np.concatenate(list(self._positives(part)))
        relevant = self.layout.relevant[part]
        query = np.repeat(np.arange(len(relevant)), relevant)
        starts = np.ones(len(score), dtype=bool)
        starts[1:] = (query[1:] != query[:-1]) | (score[1:] != score[:-1])
        at = np.flatnonzero(starts)
        query, score = query[at], score[at]
        before = at - (relevant.cumsum() - relevant)[query]
        limit = np.full(len(at), self.depth.others)
        if self.depth.relevant:
            limit = np.maximum(limit, relevant[query])
        limit = np.where(before == 0, np.maximum(limit, self.depth.best), limit)
        low, high = self.scorer.band(query + part.start, score)
        return Levels(
            first=np.searchsorted(query, np.arange(len(relevant) + 1)),
            query=query,
            score=score,
            hits=np.diff(at, append=len(starts)),
            before=before,
            limit=limit,
            low=low,
            high=high,
            above=np.zeros_like(at),
            tied=np.zeros_like(at),
        )

    def _positives(self, part: slice) -> Iterator[np.ndarray]:
        """Exact similarities of each query's positives, best first, query after query."""
        begin, columns = self.layout.query_start, self.layout.gallery_start
        sizes = np.stack([np.diff(begin), np.diff(columns)])
        changes = np.flatnonzero((sizes[:, 1:] != sizes[:, :-1]).any(0)) + 1
        run_end = np.append(changes, sizes.shape[1])
        at = part.start
        while at < part.stop:
            label = self.layout.query_class[at]
            rows, width = map(int, sizes[:, label])
            # Classes of equal sizes lie side by side: as many as fit, as one batch of products.
            pair_bytes = 8 * (width * rows + (width + rows) * self.scorer.dim)
            blocks = min(
                int(run_end[np.searchsorted(run_end, label, side="right")] - label),
                (part.stop - at) // rows,
                max(1, self.memory // 8 // pair_bytes),
            )
            if at != begin[label] or blocks == 0:  # a part of one class
                blocks, rows = 1, min(part.stop, int(begin[label + 1])) - at
                rows = min(rows, max(1, self.memory // 8 // (8 * (width + self.scorer.dim))))
            stop = at + rows * blocks
            if width:
                where = slice(int(columns[label]), int(columns[label + blocks]))
                scores = self.scorer.exact_blocks(slice(at, stop), where, blocks).flatten(0, 1)
                scores = scores.cpu().numpy()
                offset = columns[self.layout.query_class[at:stop]]
                has_self = np.flatnonzero(self.layout.self_in_class[at:stop])
                scores[has_self, (self.layout.self_column[at:stop] - offset)[has_self]] = -np.inf
                scores = -np.sort(-scores, axis=1)
                yield scores[np.arange(width) < self.layout.relevant[at:stop, None]]
            at = stop

    # -- the rest of the gallery, by lists of neighbours

    def _search_lists(self, levels: Levels, part: slice) -> None:
        """Settle the levels that lie within short lists of nearest neighbours."""
        size = len(self.scorer.gallery)
        depth = max(self.depth.others, min(self.depth.best, SHORT_LIST))
        if self.depth.relevant:
            depth = max(depth, int(self.layout.relevant[part].max()))
        # One more for the query itself, a few more so that the list's end lies clearly below.
        length = min(size, depth + 1 + 8)
        if length > max(1024, size // 8):
            return  # counting is faster
        step = max(1, min(16384, self.memory // 4 // (length * 32)))
        if not self.faiss:
            step = min(step, self.elements // size)
            if step < min(LIST_ROWS, part.stop - part.start):
                return
        for start in range(part.start, part.stop, step):
            rows = slice(start, min(start + step, part.stop))
            near, items = self._nearest(rows, length)
            end = near.min(axis=1) if length < size else np.full(len(near), -np.inf)
            skip = self.layout.gallery_class[items] == self.layout.query_class[rows, None]
            skip |= items == self.layout.self_column[rows, None]
            near[skip] = -np.inf
            self._settle(levels, part.start, rows, near, items, end)

    def _nearest(self, rows: slice, length: int) -> tuple[np.ndarray, np.ndarray]:
        """What the `length` nearest items of each query are compared by, and these items, in any order."""
        if self.faiss:
            import faiss

            metric = faiss.METRIC_L2 if self.scorer.euclidean else faiss.METRIC_INNER_PRODUCT
            query, gallery = self.scorer.query.values.numpy(), self.scorer.gallery.values.numpy()
            near, items = faiss.knn(query[rows], gallery, length, metric=metric)
            return -near if self.scorer.euclidean else near, items
        size, count = len(self.scorer.gallery), rows.stop - rows.start
        near = self.buffers[0, : count * size].view(count, size)
        self.scorer.product(rows, slice(0, size), out=near)
        offset = self.scorer.offset(slice(0, size))
        if offset is not None:
            near.sub_(offset)
        if near.device.type != "cpu":
            values, items = near.topk(length)
            return values.cpu().numpy(), items.cpu().numpy()

        def largest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            items = np.argpartition(values, size - length, axis=1)[:, size - length :]
            return np.take_along_axis(values, items, axis=1), items

        # NumPy's is several times faster than torch's topk, and leaves sharing it out to us.
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(largest, np.array_split(near.numpy(), threads)))
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])

    def _settle(
        self,
        levels: Levels,
        origin: int,
        rows: slice,
        near: np.ndarray,
        items: np.ndarray,
        end: np.ndarray,
    ) -> None:
        """Use the lists of `rows`: near and items [rows, length]; end: the last value before skipping."""
        which = levels.open(rows.start - origin, rows.stop - origin - 1)
        if not len(which):
            return
        row = levels.query[which] - (rows.start - origin)
        low, high = levels.low[which], levels.high[which]
        if self.faiss and self.scorer.euclidean:  # distances, not products
            low, high = self.scorer.distance_band(levels.query[which] + origin, levels.score[which])
        pieces = torch.from_numpy(near)[:, None]
        above, maybe = _count_by_sorting(pieces, row, low, high)
        known = (low > end[row]) & (maybe <= PAIR_COST)
        # Whatever the list does not show can only add to these.
        beyond = above + levels.before[which] >= levels.limit[which]
        levels.above[which[known | beyond]] = above[known | beyond]
        levels.limit[which[known & ~beyond]] = -1  # closed: the tiles must not count again
        doubt = np.flatnonzero(known & ~beyond & (maybe > 0))
        entry, place = _between(pieces, row[doubt], low[doubt], high[doubt])
        self._resolve(levels, origin, [(which[doubt][entry], items[row[doubt][entry], place])])

    # -- the rest of the gallery, in tiles

    def _count(self, levels: Levels, part: slice, progress: Callable[[float], None] | None) -> None:
        """Count the negatives above and at every open level."""
        queries, size = part.stop - part.start, len(self.scorer.gallery)
        todo, counts = np.unique(levels.query[levels.open(0, queries - 1)], return_counts=True)
        # Few levels are compared with each item, and where queries and gallery are one set a tile
        # then serves its rows and its columns. Many are looked up in sorted rows, the longer the better.
        many = counts.sum() > MANY * len(todo)
        mirror = self.layout.symmetric and queries == size and 2 * len(todo) > size and not many
        if mirror:
            todo = np.arange(queries)
        width = min(_up(size), SORT_WIDTH if many else COMPARE_WIDTH)
        width = min(width, self.elements // SEGMENT**2 * SEGMENT)
        height = self.elements // width // SEGMENT * SEGMENT
        doubts: list[tuple[np.ndarray, np.ndarray]] = []
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
                    near = self._near(tile, start, stop, rows=True)
                    across = np.arange(left, right)
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

    def _tile(self, origin: int, block: np.ndarray, left: int, right: int) -> Tensor:
        """Inner products [block, left:right], all that is no negative at -inf, in whole segments."""
        first, last = int(block[0]) + origin, int(block[-1]) + origin
        rows: slice | Tensor = slice(first, last + 1)
        if last - first + 1 > len(block):
            rows = torch.from_numpy(block + origin).to(self.device)
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
        self, levels: Levels, origin: int, block: np.ndarray, near: Tensor, left: int, right: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Count the items left:right for the open levels of the queries in `block`.

        near: from `_near`.  Returns (levels, items) of the pairs that the products left in doubt.
        """
        which = levels.open(block[0], block[-1])
        if not len(which):
            return []
        row = np.searchsorted(block, levels.query[which])
        low, high = levels.low[which], levels.high[which]
        if not self.scorer.trusted:  # everything is in doubt
            low = np.full_like(low, np.finfo(low.dtype).min)
            high = np.full_like(high, np.inf)
        many = len(which) > SORT_FROM * len(block)
        count = _count_by_sorting if many else _count_by_comparing
        above, maybe = count(near, row, low, high)
        # Doubts about a level that is now known to lie too deep do not matter.
        deep = levels.above[which] + above + levels.before[which] >= levels.limit[which]
        doubtful = np.flatnonzero((maybe > 0) & ~deep)
        doubts = []
        if len(doubtful):
            rows = np.unique(row[doubtful])
            if maybe[doubtful].sum() * PAIR_COST > len(rows) * (right - left):
                # Much of the tile is in doubt (a collapsed model, say): score these rows exactly.
                again = np.flatnonzero(np.isin(row, rows))
                exact = self._exact_rows(block[rows] + origin, near, rows, left, right)
                score = levels.score[which[again]]
                place = np.searchsorted(rows, row[again])
                above[again], tied = count(exact, place, score, score)
                levels.tied[which[again]] += tied
            else:
                entry, item = _between(near, row[doubtful], low[doubtful], high[doubtful])
                doubts.append((which[doubtful][entry], item + left))
        levels.above[which] += above
        return doubts

    def _exact_rows(
        self, queries: np.ndarray, near: Tensor, rows: np.ndarray, left: int, right: int
    ) -> Tensor:
        """Similarities in place of near[rows], the same items at -inf."""
        exact = self._space(len(rows), right - left, buffer=2)
        columns = slice(left, right)
        on_device = torch.from_numpy(queries).to(self.device)
        exact[: len(rows), : right - left] = self.scorer.exact(on_device, columns)
        exact = exact.unflatten(1, (-1, SEGMENT))
        skip = near[torch.from_numpy(rows).to(self.device)] == -torch.inf
        exact[: len(rows)].masked_fill_(skip, -torch.inf)
        return exact

    def _resolve(
        self, levels: Levels, origin: int, doubts: list[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """Score pairs (level, item) exactly, add them to the counts, empty the list."""
        if not doubts:
            return
        level = np.concatenate([pair[0] for pair in doubts])
        item = np.concatenate([pair[1] for pair in doubts])
        doubts.clear()
        score = self.scorer.exact_pairs(levels.query[level] + origin, item)
        np.add.at(levels.above, level, score > levels.score[level])
        np.add.at(levels.tied, level, score == levels.score[level])


def _up(items: int) -> int:
    return -(-items // SEGMENT) * SEGMENT


def _count_by_comparing(
    near: Tensor, row: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each i: how many of near[row[i]] are above high[i], and how many in [low[i], high[i]].

    near: float32 [rows, segments, SEGMENT].  row: int64 [n].  Returns two int64 [n].
    """
    # Most segments hold nothing as near as the level, which their maximum shows.
    columns = near.stride(0) == 1  # a tile seen from its columns; reduce along memory
    largest = (near.permute(1, 2, 0).amax(1).T if columns else near.amax(2)).cpu().numpy()
    entry, segment = np.nonzero(largest[row] >= low[:, None])
    above, least = (np.zeros(len(row), dtype=np.int64) for _ in range(2))
    step = max(1, near.numel() // near.shape[2] // 2)
    for start in range(0, len(entry), step):
        i = entry[start : start + step]
        place = (row[i], segment[start : start + step])
        values = near[tuple(torch.from_numpy(x).to(near.device) for x in place)]
        over = torch.empty_like(values)  # float: on a CPU, faster to fill and to sum than bool
        for bound, compare, counts in ((high, torch.gt, above), (low, torch.ge, least)):
            level = torch.from_numpy(bound[i]).to(near.device)[:, None]
            found = compare(values, level, out=over).sum(1).cpu().numpy()
            counts += np.bincount(i, weights=found, minlength=len(row)).astype(np.int64)
    return above, least - above


def _count_by_sorting(
    near: Tensor, row: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same as `_count_by_comparing`, for many levels a row.  row must ascend."""
    near = near.flatten(1)
    if near.device.type == "cpu":  # NumPy's is the faster there
        ordered = torch.from_numpy(np.sort(np.ascontiguousarray(near.numpy()), axis=1))
    else:
        ordered = near.sort(dim=1).values
    # Levels of a row side by side: [rows, most levels of any row].
    counts = np.bincount(row, minlength=len(near))
    slot = np.arange(len(row)) - (counts.cumsum() - counts)[row]
    bounds = np.full((len(near), counts.max()), np.inf, dtype=np.float32)

    def below(bound: np.ndarray, right: bool) -> np.ndarray:
        bounds[row, slot] = bound
        on_device = torch.from_numpy(bounds).to(near.device)
        return torch.searchsorted(ordered, on_device, right=right).cpu().numpy()[row, slot]

    above = near.shape[1] - below(high, right=True)
    return above, near.shape[1] - below(low, right=False) - above


def _between(
    near: Tensor, row: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(i, item) of every near[row[i], item] in [low[i], high[i]], segments end to end; int64 each."""
    entries, items = [row[:0]], [row[:0]]
    step = max(1, len(near) // 2)
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        values = near[torch.from_numpy(row[part]).to(near.device)].flatten(1)
        bounds = (torch.from_numpy(bound[part]).to(near.device)[:, None] for bound in (low, high))
        inside = (values >= next(bounds)) & (values <= next(bounds))
        entry, item = (x.cpu().numpy() for x in inside.nonzero(as_tuple=True))
        entries.append(entry + start)
        items.append(item)
    return np.concatenate(entries), np.concatenate(items)
