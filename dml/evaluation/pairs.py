"""All pairs that an evaluation compares, in tiles: for metrics of the pooled pairs.

Similarities are the exact ones (`Scorer.exact`); never more than a tile of them exists at a time.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dml.evaluation.neighbours import Layout
from dml.evaluation.scores import Scorer
from dml.evaluation.verification import PairCounts

Progress = Callable[[float], None]

TILE_BYTES = 40  # per pair of a tile: float64 product, similarities, their sorted copy, masks
LEVEL_BYTES = 128  # per distinct similarity of a same pair while it is counted
MOST = 1 << 24  # pairs in a tile


class Pairs:
    """Pairs of a query and a gallery item, save a query and itself.

    scorer holds vectors in the order of `groups`.  memory: bytes for everything else.  progress: called
    with the share of a pass through all pairs that is done, in (0, 1].  count: how many pairs there are.
    """

    def __init__(self, scorer: Scorer, groups: Layout, memory: int, progress: Progress):
        self.scorer, self.groups, self.memory = scorer, groups, memory
        self.progress = progress
        self.device = scorer.query.values.device
        own = int((groups.self_column >= 0).sum())
        self.count = len(scorer.query) * len(scorer.gallery) - own
        self.query_class = torch.from_numpy(groups.query_class).to(self.device)
        self.gallery_class = torch.from_numpy(groups.gallery_class).to(self.device)
        self.self_column = torch.from_numpy(groups.self_column).to(self.device)
        # A tile is a square, so that the float64 copies of its vectors are small beside it.
        side = math.isqrt(min(MOST, memory // 4 // TILE_BYTES))
        self.side = max(1, min(side, memory // 4 // (16 * scorer.dim)))

    def positives(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, similarities [rows, class in the gallery]), a query's own at -inf, class by class."""
        first, columns = self.groups.query_start, self.groups.gallery_start
        for label in np.flatnonzero((np.diff(first) > 0) & (np.diff(columns) > 0)):
            where = slice(int(columns[label]), int(columns[label + 1]))
            step = max(1, self.side**2 // (where.stop - where.start))
            for start in range(int(first[label]), int(first[label + 1]), step):
                rows = slice(start, min(start + step, int(first[label + 1])))
                yield rows, self._scores(rows, where)

    def tiles(self, begin: float = 0.0, end: float = 1.0) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, similarities), a query's own at -inf; progress goes from begin to end."""
        height, width = len(self.scorer.query), len(self.scorer.gallery)
        seen = 0
        for top in range(0, height, self.side):
            rows = slice(top, min(top + self.side, height))
            for left in range(0, width, self.side):
                columns = slice(left, min(left + self.side, width))
                scores = self._scores(rows, columns)
                yield rows, columns, scores
                seen += scores.numel()
                self.progress(begin + (end - begin) * seen / (height * width))

    def _scores(self, rows: slice, columns: slice) -> Tensor:
        scores = self.scorer.comparable(self.scorer.exact(rows, columns), rows)
        own = self.self_column[rows] - columns.start
        row = ((own >= 0) & (own < scores.shape[1])).nonzero()[:, 0]
        scores[row, own[row]] = -torch.inf
        return scores

    def counts(self) -> PairCounts:
        """For each distinct similarity of a same pair, how many different pairs lie above and at it.

        As many distinct similarities at a time as memory allows, from the largest; each time all pairs
        are passed through once.
        """
        same = int(self.groups.relevant.sum())
        different = self.count - same
        if not different:
            raise ValueError("auc and fnmr need pairs of different classes; there is none")
        done, parts = 0, []
        bound = math.inf
        while done < same:
            levels, hits = self._levels_below(bound)
            begin, done = done, done + int(hits.sum())
            parts.append((hits, *self._count_different(levels, begin / same, done / same)))
            bound = float(levels[0])
        hits, above, tied = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return PairCounts(hits, above, tied, different)

    def _levels_below(self, bound: float) -> tuple[np.ndarray, np.ndarray]:
        """The largest distinct similarities of same pairs below `bound`, ascending, and their counts."""
        most = max(1, self.memory // 4 // LEVEL_BYTES)
        levels, hits = np.empty(0), np.empty(0, dtype=np.int64)
        waiting: list[np.ndarray] = []

        def merge() -> None:
            nonlocal levels, hits
            new, counts = np.unique(np.concatenate([levels[:0], *waiting]), return_counts=True)
            waiting.clear()
            both, where = np.unique(np.concatenate([levels, new]), return_inverse=True)
            total = np.bincount(where, weights=np.concatenate([hits, counts])).astype(np.int64)
            levels, hits = both[-most:], total[-most:]

        for _, scores in self.positives():
            floor = levels[0] if len(levels) == most else -np.inf
            kept = scores[(scores > -torch.inf) & (scores >= floor) & (scores < bound)]
            waiting.append(kept.cpu().numpy().astype(np.float64))
            if sum(map(len, waiting)) > most:
                merge()
        merge()
        return levels, hits

    def _count_different(
        self, levels: np.ndarray, begin: float, end: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Different pairs above and at each of `levels`, which ascend; int64 each."""
        above, least = (np.zeros(len(levels), dtype=np.int64) for _ in range(2))
        for rows, columns, scores in self.tiles(begin, end):
            same = self.query_class[rows, None] == self.gallery_class[None, columns]
            scores = scores.masked_fill(same, -torch.inf).flatten()
            if self.device.type == "cpu":  # NumPy sorts the faster there
                values = np.sort(scores.numpy())
                bounds = levels.astype(values.dtype)
                ends = (np.searchsorted(values, bounds, side) for side in ("right", "left"))
            else:
                values = scores.sort().values
                bounds = torch.from_numpy(levels).to(values)
                ends = (
                    torch.searchsorted(values, bounds, right=right).cpu().numpy()
                    for right in (True, False)
                )
            above += len(values) - next(ends)
            least += len(values) - next(ends)
        return above, least - above
