"""Descriptions of an embedding's shape on the unit sphere, whatever the similarity of the evaluation.

They explain results and do not rank models. `alignment` and `uniformity` are of the pairs that the
evaluation compares, the others of the query set.
"""

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dml.evaluation.pairs import Pairs

# Singular values below this share of the largest are float32's rounding, not directions in use.
SMALLEST = 2.0**-23


def alignment(pairs: "Pairs") -> float:
    """Mean squared distance of a query to its positives (Wang & Isola, ICML 2020, arXiv:2005.10242).

    Their alpha = 2. Mean over queries of the mean over their positives: the paper asks that queries
    follow the data.  In [0, 4]; smaller is tighter.
    """
    means = []
    for _, scores in pairs.positives():
        kept = scores > -math.inf
        distance = (2 - 2 * scores.double()).masked_fill_(~kept, 0)
        count = kept.sum(1)
        means += (distance.sum(1)[count > 0] / count[count > 0]).tolist()
    return math.fsum(means) / len(means)


def uniformity(pairs: "Pairs") -> float:
    """log of the mean of exp(-2 |x - y|^2) over all pairs (Wang & Isola; their t = 2).

    In [-8, 0]; smaller is more evenly spread, 0 is collapse.
    """
    tiles = (scores.double().mul_(4).sub_(4) for _, _, scores in pairs.tiles())
    total = math.fsum(float(exponent.exp_().sum()) for exponent in tiles)
    return math.log(total / pairs.count)


def rho_spectrum(pairs: "Pairs") -> float:
    """KL divergence of the uniform distribution from the spectrum of singular values.

    (Roth et al., ICML 2020, arXiv:2002.08473; their code's rho_spectrum@1: rows not centred, singular
    values divided by their sum.)  0: all directions used alike; larger: fewer directions carry the
    embedding. Values below float32's rounding are taken for that, so a collapsed model scores at most 16.
    """
    spectrum = _singular_values(pairs, centre=0.0)
    spectrum = np.maximum(spectrum / (spectrum[0] or 1.0), SMALLEST)
    spectrum[0] = 1.0  # of nothing but zeros, too
    share = spectrum / spectrum.sum()
    return max(0.0, float(-np.log(share * len(share)).mean()))


def pcf(pairs: "Pairs", variance: Fraction) -> float:
    """Principal components fraction: the share of d components that hold more than `variance` of it all.

    (open-metric-learning's pcf.)  0 for a collapsed model, which has no variance.
    """
    count, dim = pairs.scorer.query.values.shape
    centre = sum(rows.sum(0) for _, rows in pairs.scorer.units()) / count
    spectrum = _singular_values(pairs, centre)
    if spectrum[0] <= SMALLEST * math.sqrt(count):
        return 0.0
    held = np.cumsum(spectrum**2)
    needed = np.searchsorted(held / held[-1], float(variance), side="right") + 1
    return float(needed / dim)


def intra_inter(pairs: "Pairs") -> float:
    """Mean distance within classes over that between their centres: density (Roth et al., 2020).

    As their code's dists@intra_over_inter: cosine distances; within a class the mean over its pairs,
    then over classes (of two or more); between the normalised class means, the mean over pairs of
    classes, at least 1e-8.  Smaller is denser.
    """
    _, codes, sizes = np.unique(pairs.groups.query_class, return_inverse=True, return_counts=True)
    if len(sizes) < 2 or sizes.max() < 2:
        raise ValueError("intra_inter needs queries of two classes, and two of them in one class")
    sums = np.zeros((len(sizes), pairs.scorer.dim))
    own = np.zeros(len(sizes))  # squared lengths: 1, or 0 of a zero vector
    for part, rows in pairs.scorer.units():
        first = np.flatnonzero(np.diff(codes[part], prepend=-1))
        here = codes[part][first]
        sums[here] += np.add.reduceat(rows, first)
        own[here] += np.add.reduceat(np.square(rows).sum(1), first)
    lengths = np.linalg.norm(sums, axis=1)
    several = sizes > 1
    within = (lengths**2 - own)[several] / (sizes * (sizes - 1))[several]
    # A mean that is all but zero has no direction; it is at cosine 0 to everything.
    centres = sums / np.where(lengths > 1e-6 * sizes, lengths, np.inf)[:, None]
    count = len(centres)
    across = (np.square(centres.sum(0)).sum() - np.square(centres).sum()) / (count * (count - 1))
    return float(max(1 - within.mean(), 0.0) / max(1 - across, 1e-8))


def _singular_values(pairs: "Pairs", centre: np.ndarray | float) -> np.ndarray:
    """Singular values of the queries' unit vectors less `centre`, largest first; min(n, d) of them.

    Those of the triangle of a QR decomposition, which is built chunk by chunk.
    """
    triangle = np.empty((0, pairs.scorer.dim))
    for _, rows in pairs.scorer.units():
        triangle = np.linalg.qr(np.concatenate([triangle, rows - centre]), mode="r")
    return np.linalg.svd(triangle, compute_uv=False)


DIAGNOSTICS = {
    "alignment": alignment,
    "uniformity": uniformity,
    "rho_spectrum": rho_spectrum,
    "pcf@x": pcf,
    "intra_inter": intra_inter,
}
