"""Metrics of pooled pairs, clusterings and embedding spaces, from docs/protocol.md: slow, literal, float64.

Nothing here is shared with `dml.evaluation`.  query, gallery: rows of numbers.  A pair is (i, j), query
and gallery position; `pairs_of` lists those that an evaluation compares.
"""

import math
from collections import Counter
from fractions import Fraction

import numpy as np


def pairs_of(query_labels, gallery_labels, query_ids, gallery_ids):
    """[(i, j, of one class)]; ids None where nothing is excluded."""
    return [
        (i, j, int(query_labels[i]) == int(gallery_labels[j]))
        for i in range(len(query_labels))
        for j in range(len(gallery_labels))
        if query_ids is None or query_ids[i] != gallery_ids[j]
    ]


# -- verification: similarities of pairs of one class and of different classes


def auc(same, different):
    """Every same pair against every different one; a tie is half a win."""
    same, different = np.array(same)[:, None], np.array(different)
    wins = int((same > different).sum()) + Fraction(int((same == different).sum()), 2)
    return float(wins / (same.size * different.size))


def fnmr(same, different, fmr):
    """Of all thresholds whose false match rate is at most fmr, the one that refuses fewest."""
    same, different = np.array(same), np.array(different)
    rates = [
        (same < t).sum() / len(same)
        for t in {*same.tolist(), *different.tolist(), math.inf}
        if int((different >= t).sum()) <= Fraction(fmr) * len(different)
    ]
    return min(rates)


# -- clusterings: two lists of codes


def entropy(codes):
    n = len(codes)
    return -math.fsum(c / n * math.log(c / n) for c in Counter(codes).values())


def mutual_information(a, b):
    n, of_a, of_b = len(a), Counter(a), Counter(b)
    return math.fsum(
        c / n * math.log(n * c / (of_a[i] * of_b[j]))
        for (i, j), c in Counter(zip(a, b, strict=True)).items()
    )


def nmi(a, b):
    mean = (entropy(a) + entropy(b)) / 2
    return mutual_information(a, b) / mean if mean else 1.0


def ami(a, b):
    """(I - E) / (mean of entropies - E); E over all ways to deal out the items (Vinh et al. 2010)."""
    n = len(a)
    terms = []
    for size_a in Counter(a).values():
        for size_b in Counter(b).values():
            for c in range(max(1, size_a + size_b - n), min(size_a, size_b) + 1):
                ways = Fraction(
                    math.comb(size_b, c) * math.comb(n - size_b, size_a - c), math.comb(n, size_a)
                )
                terms.append(c / n * math.log(n * c / (size_a * size_b)) * float(ways))
    expected = math.fsum(terms)
    mean = (entropy(a) + entropy(b)) / 2
    return (mutual_information(a, b) - expected) / (mean - expected)


def f1(classes, clusters):
    """Pair by pair."""
    n = len(classes)
    both = guessed = true = 0
    for i in range(n):
        for j in range(i):
            both += classes[i] == classes[j] and clusters[i] == clusters[j]
            guessed += clusters[i] == clusters[j]
            true += classes[i] == classes[j]
    if not guessed + true:
        return 1.0
    precision, recall = both / max(guessed, 1), both / max(true, 1)
    return 2 * precision * recall / (precision + recall) if both else 0.0


# -- the space: unit vectors


def units(rows):
    """float32 rows divided by their length; zero rows stay."""
    rows = [[float(np.float32(x)) for x in row] for row in rows]
    lengths = [math.sqrt(math.fsum(x * x for x in row)) for row in rows]
    return np.array(
        [[x / (size or 1.0) for x in row] for row, size in zip(rows, lengths, strict=True)]
    )


def squared_distance(x, y):
    """Of unit vectors: 2 - 2 cos; of a zero vector too."""
    return 2 - 2 * math.fsum(x * y)


def alignment(query, gallery, pairs):
    query, gallery = units(query), units(gallery)
    means = []
    for i in range(len(query)):
        own = [squared_distance(query[i], gallery[j]) for k, j, same in pairs if k == i and same]
        if own:
            means.append(math.fsum(own) / len(own))
    return math.fsum(means) / len(means)


def uniformity(query, gallery, pairs):
    query, gallery = units(query), units(gallery)
    potential = [math.exp(-2 * squared_distance(query[i], gallery[j])) for i, j, _ in pairs]
    return math.log(math.fsum(potential) / len(potential))


def rho_spectrum(query):
    values = np.linalg.svd(units(query), compute_uv=False)
    largest = max(values) or 1.0
    values = [max(value / largest, 2.0**-23) for value in values]
    values[0] = 1.0
    share = [value / math.fsum(values) for value in values]
    uniform = 1 / len(share)
    return math.fsum(uniform * math.log(uniform / s) for s in share)


def pcf(query, variance):
    """Covariance, its eigenvalues, and how many of them hold more than `variance`."""
    rows = units(query)
    eigenvalues = sorted(np.linalg.eigvalsh(np.cov(rows.T, ddof=0).reshape(rows.shape[1], -1)))[
        ::-1
    ]
    total, held = math.fsum(eigenvalues), 0.0
    if eigenvalues[0] <= 2.0**-46:  # nothing but float32's rounding
        return 0.0
    for number, value in enumerate(eigenvalues, start=1):
        held += value
        if held / total > float(variance):
            return number / rows.shape[1]
    raise AssertionError("all of it is more than a share of it")


def intra_inter(query, labels):
    rows, labels = units(query), [int(label) for label in labels]
    within, centres = [], []
    for label in sorted(set(labels)):
        members = [row for row, other in zip(rows, labels, strict=True) if other == label]
        distances = [
            1 - math.fsum(members[i] * members[j])
            for i in range(len(members))
            for j in range(len(members))
            if i != j
        ]
        if distances:
            within.append(math.fsum(distances) / len(distances))
        mean = np.mean(members, axis=0)
        length = np.linalg.norm(mean)
        centres.append(mean / length if length > 1e-6 else 0 * mean)
    across = [
        1 - math.fsum(a * b) for i, a in enumerate(centres) for j, b in enumerate(centres) if i != j
    ]
    return np.mean(within) / max(np.mean(across), 1e-8)
