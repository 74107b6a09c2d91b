"""Groups of the same picture: identical pixels, and nearly the same."""

from collections.abc import Hashable, Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Chosen on 5,902 photographs of birds (144 x 144): of the 17 million pairs, 6 have hashes that differ in
# 64 bits or less.  Looked at, the four up to 46 bits are the same photograph, the next (58) is not, the
# sixth (62) is, cropped otherwise.  Copies made for the purpose (JPEG quality 30, a third of the size,
# 15 % brighter) differ in 16 bits at most; 98 % of those that lost 2 % on each side, in 48 or less.
HASH_BITS = 48  # of 256
# The hash sees no colours: at 48 bits it takes 95 % and more of the birds with their hue turned by 85 and
# 170 degrees (a product in another colour) for copies, and some drawn characters.  This correlation of
# 16 x 16 RGB pixels leaves 16 and 9 % of the former, none of the latter, and all of the copies above but
# 5 % of the cropped ones.
CORRELATION = 0.95
# What is held at a time; bounds the memory if all images are alike.
QUERIES = 256
PAIRS = 8192


def same(keys: Iterable[Hashable]) -> list[np.ndarray]:
    """Positions of equal keys, groups of two and more, in the order of their first; int64."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return [np.array(group) for group in groups.values() if len(group) > 1]


def similar(hashes: np.ndarray, small: np.ndarray) -> list[np.ndarray]:
    """Positions of nearly the same pictures, groups of two and more, in the order of their first; int64.

    hashes: uint8 [n, 32], packed bits.  small: uint8 [n, d], pixels.  A pair has hashes that differ in
    `HASH_BITS` bits or less, and pixels whose correlation is `CORRELATION` or more; pairs that share a
    picture are one group.  Every pair is compared, by faiss.
    """
    import faiss

    n = len(hashes)
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    index.add(hashes)
    first = np.arange(n)  # of each picture's group, as far as known
    for start in range(0, n, QUERIES):
        bounds, _, right = index.range_search(hashes[start : start + QUERIES], HASH_BITS + 1)
        left = start + np.repeat(np.arange(len(bounds) - 1), np.diff(bounds.astype(np.int64)))
        new = (right > left) & (first[left] != first[right])  # not yet known to be of one group
        left, right = left[new], right[new]
        alike = correlated(small, left, right)
        if alike.any():
            left = np.concatenate([np.arange(n), left[alike]])
            right = np.concatenate([first, right[alike]])
            edges = coo_array((np.ones(len(left), bool), (left, right)), (n, n))
            _, groups = connected_components(edges, directed=False)
            first = np.unique(groups, return_index=True)[1][groups]
    return same(first.tolist())


def correlated(small: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether pixels small[left] and small[right] correlate by `CORRELATION` or more; bool."""
    alike = np.zeros(len(left), bool)
    for piece in (slice(i, i + PAIRS) for i in range(0, len(left), PAIRS)):
        one, other = (small[side[piece]].astype(np.float32) for side in (left, right))
        one -= one.mean(axis=1, keepdims=True)
        other -= other.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        product = np.einsum("nd,nd->n", one, other)
        # A picture of one colour has length 0, and correlates with none.
        alike[piece] = (product >= CORRELATION * lengths) & (lengths > 0)
    return alike


def bits_apart(hashes: np.ndarray, group: np.ndarray) -> int:
    """The most bits in which a picture of a group differs from the group's first."""
    differing = np.bitwise_xor(hashes[group], hashes[group[0]])
    return int(np.unpackbits(differing, axis=1).sum(axis=1).max())
