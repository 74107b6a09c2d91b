"""Which images show what an encoder does: queries with their nearest images, and classes it confuses.

Torch comes in with the first search.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dml.embedding_files import Embedded

CHUNK = 1 << 24  # similarities held at a time


@dataclass(frozen=True)
class Neighbours:
    """What lies nearest to each query.  Positions are rows of the embeddings.

    query: int64 [q].  nearest: int64 [q, k], best first; -1 where the gallery is smaller.
    right, wrong: int64 [q], the nearest image of the query's class and of any other; -1: there is none.
    rank: int64 [q], of `right` among all, from 1; 0 without one.  margin: float64 [q], by how much `right`
    is nearer than `wrong`, in the unit of `nearness`; nan where one of them is missing.
    """

    query: np.ndarray
    nearest: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    rank: np.ndarray
    margin: np.ndarray


def neighbours(
    embedded: Embedded, k: int, progress: Callable[[float], None] = lambda share: None
) -> Neighbours:
    """Search every query's nearest images: exact, with the similarities that metrics are made of.

    Queries are searched among the gallery, or where items have no roles among all others.  Of tied
    images any may come first.
    """
    import torch

    from dml.evaluation.scores import Scorer

    everything = np.arange(len(embedded))
    is_query = embedded.is_query
    query = everything if is_query is None else np.flatnonzero(is_query)
    gallery = everything if is_query is None else np.flatnonzero(~is_query)
    values = torch.from_numpy(np.ascontiguousarray(embedded.embeddings, dtype=np.float32))
    rows, columns = torch.from_numpy(query), torch.from_numpy(gallery)
    scorer = Scorer(
        (values, rows), None if is_query is None else (values, columns), embedded.similarity
    )
    labels = torch.from_numpy(embedded.labels)
    k = min(k, len(gallery) - (is_query is None))
    found: dict[str, list[np.ndarray]] = {"nearest": [], "right": [], "wrong": [], "rank": []}
    step = max(1, CHUNK // len(gallery))
    for start in range(0, len(query), step):
        part = slice(start, min(start + step, len(query)))
        scores = scorer.exact(part, slice(None))
        if is_query is None:
            scores[torch.arange(part.stop - start), torch.arange(start, part.stop)] = -torch.inf
        same = labels[rows[part], None] == labels[None, columns]
        best = scores.topk(k, dim=1)
        found["nearest"].append(gallery[best.indices.numpy()])
        for name, mask in (("right", ~same), ("wrong", same)):
            score, place = scores.masked_fill(mask, -torch.inf).max(1)
            place = np.where(score.isfinite().numpy(), gallery[place.numpy()], -1)
            found[name].append(place)
            if name == "right":
                rank = 1 + (scores > score[:, None]).sum(1).numpy()
                found["rank"].append(np.where(place >= 0, rank, 0))
        progress(part.stop / len(query))
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    right, wrong = joined["right"], joined["wrong"]
    both = (right >= 0) & (wrong >= 0)
    margin = np.full(len(query), np.nan)
    margin[both] = nearness(embedded, query[both], right[both]) - nearness(
        embedded, query[both], wrong[both]
    )
    return Neighbours(query=query, margin=margin, **joined)


def nearness(embedded: Embedded, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How near items are to each other, float64 [n]: their cosine, inner product or minus their distance.

    first, second: int64 [n], rows of the embeddings.
    """
    found = np.empty(len(first))
    step = max(1, CHUNK // embedded.embeddings.shape[1] // 8)
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        a, b = (embedded.embeddings[rows[part]].astype(np.float64) for rows in (first, second))
        if embedded.similarity == "euclidean":
            found[part] = -np.linalg.norm(a - b, axis=1)
            continue
        found[part] = (a * b).sum(1)
        if embedded.similarity == "cosine":
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            found[part] /= np.where(lengths > 0, lengths, 1.0)
    return found


def shown_value(similarity: str, nearness: float) -> float:
    """The number a person is shown: the distance itself where embeddings are compared by distance."""
    return -nearness if similarity == "euclidean" else nearness


def value_name(similarity: str) -> str:
    """What the shown number is."""
    return {"cosine": "cosine", "dot": "inner product", "euclidean": "distance"}[similarity]


def random_queries(found: Neighbours, count: int, seed: int) -> np.ndarray:
    """Positions in `found.query` of some queries that have an image of their class to find."""
    legal = np.flatnonzero(found.right >= 0)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(legal, size=min(count, len(legal)), replace=False))


def extreme_queries(found: Neighbours, labels: np.ndarray, count: int, best: bool) -> np.ndarray:
    """Positions in `found.query` of the largest (best) or smallest margins, one query of a class.

    labels: int64 [n], of all embeddings.
    """
    order = np.argsort(-found.margin if best else found.margin, kind="stable")  # nan comes last
    order = order[np.isfinite(found.margin[order])]
    _, first = np.unique(labels[found.query[order]], return_index=True)
    return order[np.sort(first)[:count]]


@dataclass(frozen=True)
class Confusion:
    """Two classes of which one's queries find the other's images first.

    labels: the class with the larger share of such queries comes first.  wrong: how many of each class's
    queries.  queries: how many each class has.  examples: positions in `Neighbours.query`, from both.
    """

    labels: tuple[int, int]
    wrong: tuple[int, int]
    queries: tuple[int, int]
    examples: tuple[int, ...]


def confusions(found: Neighbours, labels: np.ndarray, count: int, examples: int) -> list[Confusion]:
    """The pairs of classes confused most often, counted both ways.

    A query counts where its nearest image is of another class; queries without an image of their own
    class to find do not.  The examples are those most clearly wrong.  labels: int64 [n].
    """
    counted = np.flatnonzero(found.right >= 0)
    of_query = labels[found.query]
    sizes = np.bincount(of_query[counted], minlength=int(labels.max()) + 1)
    nearest = labels[found.nearest[counted, 0]]
    missed = nearest != of_query[counted]
    rows, own, other = counted[missed], of_query[counted][missed], nearest[missed]
    pairs = np.stack([np.minimum(own, other), np.maximum(own, other)], axis=1)
    if not len(pairs):
        return []
    unique, code, times = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    code = code.reshape(-1)
    share = times / sizes[unique].sum(1)
    result = []
    for number in np.lexsort((-share, -times))[:count]:
        here = np.flatnonzero(code == number)
        wrong = {int(label): int((own[here] == label).sum()) for label in unique[number]}
        first, second = sorted(wrong, key=lambda label: -wrong[label] / max(1, int(sizes[label])))
        worst = here[np.argsort(found.margin[rows[here]], kind="stable")[:examples]]
        result.append(
            Confusion(
                labels=(first, second),
                wrong=(wrong[first], wrong[second]),
                queries=(int(sizes[first]), int(sizes[second])),
                examples=tuple(int(row) for row in rows[worst]),
            )
        )
    return result


def most_taken_for(found: Neighbours, labels: np.ndarray) -> dict[int, tuple[int, int]]:
    """Class -> (the other class its queries find first most often, how many of them do)."""
    counted = np.flatnonzero(found.right >= 0)
    own, nearest = labels[found.query[counted]], labels[found.nearest[counted, 0]]
    missed = own != nearest
    if not missed.any():
        return {}
    pairs, times = np.unique(
        np.stack([own[missed], nearest[missed]], axis=1), axis=0, return_counts=True
    )
    order = np.lexsort((pairs[:, 1], times))  # the most frequent last, and wins
    return {int(pairs[i, 0]): (int(pairs[i, 1]), int(times[i])) for i in order}
