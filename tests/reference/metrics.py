"""Retrieval metrics written out from docs/protocol.md: slow, literal, float64, no tensor library.

Nothing here is shared with `dml.evaluation`. Similarities are exact rational sums, a ranking is a
list of 0 and 1, and ties are averaged over every arrangement where these are few enough to list.
"""

import math
import re
from itertools import combinations, product

import numpy as np

GRID = 26
RECALLS = ("recall@", "cmc@", "legacy/recall")


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


def number_in(metric):
    found = re.search("@([0-9]+)", metric)
    return int(found[1]) if found else None


def cut_and_divisor(metric, relevant, total):
    """Sums over hits end at the cut, and are divided by the divisor."""
    k = number_in(metric)
    return {
        "precision@k": (k, k),
        "r_precision": (relevant, relevant),
        "map@k": (k, k and min(k, relevant)),
        "map_cut@k": (k, relevant),
        "map@r": (relevant, relevant),
        "map": (total, relevant),
        "legacy/map_c": (relevant + 1, relevant + 1),
        "legacy/map@k_rdml": (k, relevant + 1),
        "legacy/map@r@k_pml": (k and min(k, relevant), relevant),
        "legacy/precision@k_oml": (k, k and min(k, relevant)),
    }[re.sub("@[0-9]+", "@k", metric)]


def value_of(metric, ranking, relevant):
    k = number_in(metric) or len(ranking)
    if metric.startswith(RECALLS):
        return float(any(ranking[:k]))
    if metric == "mrr":
        return 1 / (ranking.index(1) + 1)
    if metric == "minp":
        return relevant / max(i + 1 for i, hit in enumerate(ranking) if hit)
    if metric.startswith("ndcg"):
        gain = sum(1 / math.log2(i + 2) for i, hit in enumerate(ranking[:k]) if hit)
        return gain / sum(1 / math.log2(i + 2) for i in range(min(k, relevant)))
    if metric.startswith("legacy/map@") and metric.endswith("_oml"):
        precisions = [
            sum(ranking[: i + 1]) / (i + 1) for i in range(len(ranking[:k])) if ranking[i]
        ]
        return math.fsum(precisions) / max(len(precisions), 1)
    cut, divisor = cut_and_divisor(metric, relevant, len(ranking))
    top = ranking[:cut]
    if "precision" in metric:
        return sum(top) / divisor
    return math.fsum(sum(top[: i + 1]) / (i + 1) for i in range(len(top)) if top[i]) / divisor


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
    """The mean of the metric over every distinct way to order tied items (optimistic: the largest)."""
    relevant = sum(hits for _, hits in groups)
    ways = [
        [[int(i in chosen) for i in range(size)] for chosen in combinations(range(size), hits)]
        for size, hits in groups
    ]
    values = [
        value_of(metric, [hit for part in choice for hit in part], relevant)
        for choice in product(*ways)
    ]
    return max(values) if "optimistic" in metric else math.fsum(values) / len(values)


def by_position(metric, groups):
    """The same, position by position, for groups too large to list."""
    relevant = sum(hits for _, hits in groups)
    total = sum(size for size, _ in groups)
    k = number_in(metric) or total
    if metric.startswith(RECALLS) or metric == "mrr":
        before, size, hits = group_of_a_positive(groups)
        if "optimistic" in metric:
            return float(before < k)
        first = places_of_the_first(size, hits)
        if metric == "mrr":
            return math.fsum(p / (before + x + 1) for x, p in enumerate(first))
        return math.fsum(p for x, p in enumerate(first) if before + x < k)
    if metric == "minp":
        after, size, hits = group_of_a_positive(groups[::-1])
        first = places_of_the_first(size, hits)  # from the end
        return math.fsum(p * relevant / (total - after - x) for x, p in enumerate(first))
    if metric.startswith("legacy/map@") and metric.endswith("_oml"):
        return map_oml(groups, k)
    if metric.startswith("ndcg"):
        gain = math.fsum(chance / math.log2(place + 1) for place, chance, _ in places(groups, k))
        return gain / math.fsum(1 / math.log2(i + 2) for i in range(min(k, relevant)))
    cut, divisor = cut_and_divisor(metric, relevant, total)
    if "precision" in metric:
        return math.fsum(chance for _, chance, _ in places(groups, cut)) / divisor
    return math.fsum(chance * (1 + h) / place for place, chance, h in places(groups, cut)) / divisor


def group_of_a_positive(groups):
    """(items before it, its items, its positives) of the first group with a positive."""
    before = 0
    for size, hits in groups:
        if hits:
            return before, size, hits
        before += size
    raise AssertionError("no positive")


def places_of_the_first(size, hits):
    """[x]: chance that the first positive has exactly x others of its group before it."""
    return [
        math.comb(size - x - 1, hits - 1) / math.comb(size, hits) for x in range(size - hits + 1)
    ]


def places(groups, cut):
    """(position, chance of a hit, hits before it given that) of each position up to the cut."""
    position = found = 0
    for size, hits in groups:
        for s in range(size):
            position += 1
            if position <= cut and hits:
                yield position, hits / size, found + (s * (hits - 1) / (size - 1) if s else 0.0)
        found += hits


def map_oml(groups, k):
    """Sum of precisions over hits, divided by the hits: given each number of them in the group cut."""
    above, seen = [], 0
    while groups and seen + groups[0][0] <= k:
        above.append(groups[0])
        seen += groups[0][0]
        groups = groups[1:]
    size, hits = groups[0] if groups else (0, 0)
    rest, found = min(k - seen, size), sum(h for _, h in above)
    terms = []
    for new in range(max(0, rest - (size - hits)), min(rest, hits) + 1):
        if found + new:
            chance = math.comb(hits, new) * math.comb(size - hits, rest - new)
            top = places([*above, (rest, new)], k)
            precisions = math.fsum(c * (1 + h) / place for place, c, h in top)
            terms.append(chance / math.comb(size, rest) * precisions / (found + new))
    return math.fsum(terms)


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
    """(metrics, per-query values with None for queries that do not count)."""
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
                per_query[metric].append(0.0 if "lone_missed" in metric else None)
            elif arrangements(groups) <= 30:
                per_query[metric].append(by_listing(metric, groups))
            else:
                per_query[metric].append(by_position(metric, groups))
    means = {}
    for metric, values in per_query.items():
        counted = [value for value in values if value is not None]
        means[metric] = math.fsum(counted) / len(counted)
    return means, per_query
