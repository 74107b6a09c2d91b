"""Post-processing and re-ranking written out from the papers: slow, literal, float64, lists and sets.

Nothing here is shared with `dml.evaluation`. "The k nearest" holds those that tie with the k-th.
"""

import math

import numpy as np
from reference.metrics import similarities as cosines_of


def unit(row):
    row = np.asarray(row, dtype=np.float64)
    size = math.sqrt(math.fsum(row * row))
    return row / size if size else row


def cosines(query, gallery):
    return cosines_of(query, gallery, "cosine")


def nearest(scores, k, leave_out=None):
    """Positions of the k largest scores and those tied with the k-th."""
    order = sorted((s for j, s in enumerate(scores) if j != leave_out), reverse=True)
    if not order or k == 0:
        return set()
    bound = order[min(k, len(order)) - 1]
    return {j for j, s in enumerate(scores) if j != leave_out and s >= bound}


def expanded(query, gallery, own, k, alpha):
    result = []
    for i, scores in enumerate(cosines(query, gallery)):
        total = unit(query[i])
        for j in nearest(scores, k, own[i] if own[i] >= 0 else None):
            if scores[j] >= 0:
                total = total + scores[j] ** alpha * unit(gallery[j])
        result.append(unit(total))
    return np.array(result)


def whitened(rows, train, dim, whiten):
    train = np.array([unit(row) for row in train])
    mean = train.mean(0)
    _, sizes, axes = np.linalg.svd(train - mean, full_matrices=False)
    result = []
    for row in rows:
        parts = [(unit(row) - mean) @ axis for axis in axes[:dim]]
        if whiten:
            parts = [p / (s / math.sqrt(len(train))) for p, s in zip(parts, sizes, strict=False)]
        result.append(unit(parts))
    return np.array(result)


def k_reciprocal(query, gallery, k1, k2, weight):
    """Distances [q, g]; gallery None: the queries."""
    points = list(query) if gallery is None else [*query, *gallery]
    scores = cosines(points, points)
    count = len(points)
    distance = [[2 - 2 * scores[i][j] for j in range(count)] for i in range(count)]
    for i in range(count):
        largest = max(distance[i][j] for j in range(count) if j != i) or 1.0
        distance[i] = [d / largest for d in distance[i]]

    def near(i, k):
        return {i} | nearest(scores[i], k, i)

    def reciprocal(i, k):
        return {j for j in near(i, k) if i in near(j, k)}

    vectors = []
    for i in range(count):
        base = reciprocal(i, k1)
        star = set(base)
        for j in base:
            half = reciprocal(j, max(1, round(k1 / 2)))
            if len(base & half) >= 2 / 3 * len(half):
                star |= half
        row = [math.exp(-distance[i][j]) if j in star else 0.0 for j in range(count)]
        vectors.append([v / math.fsum(row) for v in row])
    smoothed = []
    for i in range(count):
        first = near(i, k2 - 1)
        smoothed.append(
            [math.fsum(vectors[j][c] for j in first) / len(first) for c in range(count)]
        )
    start = 0 if gallery is None else len(query)
    result = []
    for i in range(len(query)):
        row = []
        for j in range(start, count):
            least = math.fsum(map(min, smoothed[i], smoothed[j]))
            most = math.fsum(map(max, smoothed[i], smoothed[j]))
            row.append((1 - weight) * (1 - least / most) + weight * distance[i][j])
        result.append(row)
    return np.array(result)


def diffusion(query, gallery, k, alpha, gamma):
    """f [q, g] by a dense solve; gallery None: the queries are the gallery."""
    items = query if gallery is None else gallery
    scores = cosines(items, items)
    count = len(items)
    lists = [nearest(scores[i], k, i) for i in range(count)]
    affinity = np.zeros((count, count))
    for i in range(count):
        for j in lists[i]:
            if i in lists[j]:
                affinity[i, j] = max(scores[i][j], 0) ** gamma
    degree = affinity.sum(1)
    degree[degree == 0] = 1
    normalised = affinity / np.sqrt(degree[:, None] * degree[None])
    start = np.eye(count)
    if gallery is not None:
        start = np.zeros((len(query), count))
        for i, row in enumerate(cosines(query, gallery)):
            for j in nearest(row, k):
                start[i, j] = max(row[j], 0) ** gamma
    return np.linalg.solve(np.eye(count) - alpha * normalised, start.T).T
