"""Retrieval metrics written out from docs/protocol.md: slow, literal, float64, no tensor library.

Nothing here is shared with `dml.evaluation`. Similarities are exact rational sums, a ranking is a
list of 0 and 1, and ties are averaged over every arrangement where these are few enough to list.
"""

import math
from itertools import combinations, product

import numpy as np

GRID = 26


# -- similarity of a pair


def length(row):
    return math.sqrt(math.fsum(float(x) * float(x) for x in row))


def octave(size):
    """m with size in [0.7, 1.4) * 2^m."""
    mantissa, exponent = math.frexp(size if size > 0 else 1.0)
    return exponent - 1 if mantissa < 0.7 else exponent


def on_grid(row, m):
    """Whole numbers of steps of 2^(m - 26); digits past float32's 24 dropped."""
    steps = [round(math.ldexp(x, GRID - m)) for x in row]
    return [int(np.float32(step)) for step in steps]


def centre_of(rows):
    """Lower medians, rounded to about half the spread of one coordinate."""
    middle = [sorted(column)[(len(rows) - 1) // 2] for column in zip(*rows, strict=True)]
    lengths = [length([x - c for x, c in zip(row, middle, strict=True)]) for row in rows]
    lengths = sorted(value for value in lengths if value > 0)
    if not lengths:
        return middle
    spread = lengths[(len(lengths) - 1) // 2] / math.sqrt(len(middle))
    step = 2.0 ** (octave(spread) - 1)
    return [round(c / step) * step for c in middle]


def similarities(query, gallery, similarity):
    """float32 [q, g] as Python floats: larger is nearer."""
    query = [[float(np.float32(x)) for x in row] for row in query]
    gallery = [[float(np.float32(x)) for x in row] for row in gallery]
    if similarity == "euclidean":
        centre = centre_of(gallery)
        query = [[x - c for x, c in zip(row, centre, strict=True)] for row in query]
        gallery = [[x - c for x, c in zip(row, centre, strict=True)] for row in gallery]

    def prepared(row):
        """Whole steps, their exponent, their squared length and the length there should be."""
        size = length(row)
        m = 0 if similarity == "cosine" else octave(size)
        if similarity == "cosine":
            row, size = [x / (size or 1.0) for x in row], 1.0
        steps = on_grid(row, m)
        square = math.ldexp(float(sum(a * a for a in steps)), 2 * (m - GRID))
        return steps, m, square, size

    queries, items = [prepared(row) for row in query], [prepared(row) for row in gallery]
    table = []
    for q, m, square_q, size_q in queries:
        line = []
        for g, n, square_g, size_g in items:
            dot = sum(a * b for a, b in zip(q, g, strict=True))  # whole numbers: exact
            value = math.ldexp(float(dot), m + n - 2 * GRID)
            if similarity == "euclidean":
                value = 2 * value - (square_q + square_g)
            elif value:
                value *= size_g / math.sqrt(square_g)
                if similarity == "cosine":
                    value *= size_q / math.sqrt(square_q)
            line.append(float(np.float32(value)))
        table.append(line)
    return table


# -- metrics of one ranking, a list of 0 and 1; `relevant` is R


def value_of(metric, ranking, relevant):
    name, _, k = metric.partition("@")
    if metric in ("map@r", "r_precision"):
        k = relevant
    k = int(k or len(ranking))
    top = ranking[:k]
    precisions = [sum(ranking[: i + 1]) / (i + 1) for i in range(len(top)) if top[i]]
    if name == "recall":
        return float(any(top))
    if name in ("precision", "r_precision"):
        return sum(top) / k
    if name == "map":
        return sum(precisions) / min(k, relevant)
    if name == "mrr":
        return 1 / (ranking.index(1) + 1)
    if name == "ndcg":
        gain = sum(1 / math.log2(i + 2) for i in range(len(top)) if top[i])
        return gain / sum(1 / math.log2(i + 2) for i in range(min(k, relevant)))
    raise AssertionError(metric)


def tie_groups(scores, positive):
    """[(items, positives)] of equal score, best first."""
    groups = {}
    for score, hit in zip(scores, positive, strict=True):
        size, hits = groups.get(score, (0, 0))
        groups[score] = (size + 1, hits + hit)
    return [groups[score] for score in sorted(groups, reverse=True)]


def arrangements(groups):
    return math.prod(math.comb(size, hits) for size, hits in groups)


def by_listing(metric, groups):
    """The mean of the metric over every distinct way to order tied items."""
    relevant = sum(hits for _, hits in groups)
    ways = [
        [[int(i in chosen) for i in range(size)] for chosen in combinations(range(size), hits)]
        for size, hits in groups
    ]
    values = [
        value_of(metric, [hit for part in choice for hit in part], relevant)
        for choice in product(*ways)
    ]
    return math.fsum(values) / len(values)


def by_position(metric, groups):
    """The same expectation, position by position, for groups too large to list."""
    name, _, k = metric.partition("@")
    relevant = sum(hits for _, hits in groups)
    total = sum(size for size, _ in groups)
    if metric in ("map@r", "r_precision"):
        k = relevant
    k = int(k or total)
    if name in ("recall", "mrr"):
        before, (size, hits) = 0, groups[0]
        for size, hits in groups:
            if hits:
                break
            before += size
        # first[x]: chance that the first positive has exactly x others of its group before it
        first = [
            math.comb(size - x - 1, hits - 1) / math.comb(size, hits)
            for x in range(size - hits + 1)
        ]
        if name == "recall":
            return math.fsum(p for x, p in enumerate(first) if before + x < k)
        return math.fsum(p / (before + x + 1) for x, p in enumerate(first))
    terms, position, found = [], 0, 0
    for size, hits in groups:
        for s in range(size):
            position += 1
            if position > k or not hits:
                continue
            chance = hits / size
            if name in ("precision", "r_precision"):
                terms.append(chance)
            elif name == "ndcg":
                terms.append(chance / math.log2(position + 1))
            else:
                others = s * (hits - 1) / (size - 1) if size > 1 else 0.0
                terms.append(chance * (found + 1 + others) / position)
        found += hits
    value = math.fsum(terms)
    if name == "ndcg":
        return value / math.fsum(1 / math.log2(i + 2) for i in range(min(k, relevant)))
    return value / (min(k, relevant) if name == "map" else k)


def evaluate(
    query,
    query_labels,
    gallery=None,
    gallery_labels=None,
    query_ids=None,
    gallery_ids=None,
    metrics=("recall@1",),
    similarity="cosine",
):
    """(metrics, per-query values with None for lone queries)."""
    own = gallery is None
    if own:
        gallery, gallery_labels = query, query_labels
        query_ids = gallery_ids = range(len(query))
    table = similarities(query, gallery, similarity)
    per_query = {metric: [] for metric in metrics}
    for i, line in enumerate(table):
        keep = [j for j in range(len(line)) if query_ids is None or gallery_ids[j] != query_ids[i]]
        positive = [int(gallery_labels[j]) == int(query_labels[i]) for j in keep]
        groups = tie_groups([line[j] for j in keep], positive)
        for metric in metrics:
            if not any(positive):
                per_query[metric].append(None)
            elif arrangements(groups) <= 30:
                per_query[metric].append(by_listing(metric, groups))
            else:
                per_query[metric].append(by_position(metric, groups))
    means = {}
    for metric, values in per_query.items():
        counted = [value for value in values if value is not None]
        means[metric] = math.fsum(counted) / len(counted)
    return means, per_query
