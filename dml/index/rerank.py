"""Re-ranking of search results: the evaluation's own steps, applied to what an index finds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dml import build
from dml.config import check, compose
from dml.errors import ConfigurationError, Problem
from dml.index.vectors import scores

STEPS = ("query_expansion", "k_reciprocal")
DEPTH = 200  # candidates that are re-ranked


@dataclass(frozen=True)
class Rerank:
    """A step: its name, options, and the function of `dml.evaluation` with these options filled in."""

    name: str
    options: dict[str, Any]
    function: Callable[..., Any]


def step(name: str, options: Sequence[str] = ()) -> Rerank:
    """A step with its values from configs/post; options: words such as `k1=10` that change them.

    Raises ConfigurationError: an unknown step or option, a value out of range.
    """
    if name not in STEPS:
        raise ConfigurationError([Problem(f"rerank={name}", f"must be one of {', '.join(STEPS)}.")])
    words = [f"post=[{name}]", *(f"post.{name}.{option}" for option in options)]
    composed, problems = compose.compose_all(words, "eval")
    problems += check.node_problems(composed.config, f"post.{name}")
    if problems:
        raise ConfigurationError(
            [Problem(p.where.replace(f"post.{name}.", "rerank."), p.what) for p in problems]
        )
    node = composed.config.post[name]
    plain = {key: value for key, value in build.plain(node).items() if key != "_target_"}
    return Rerank(name, plain, build.constructor(node))


def reranked_search(
    index: Any,
    embeddings: np.ndarray,
    k: int,
    step: Rerank,
    where: str | None = None,
    exclude: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`Index.search`, its order changed by a step; scores stay those of the query itself.

    query_expansion searches again with the query averaged with its nearest; k_reciprocal orders the 200
    nearest anew by whose neighbours they are.

    Raises ValueError: as `Index.search`, or embeddings that are not compared by their cosine.
    """
    if index.similarity != "cosine":
        raise ValueError(f"{step.name} compares by cosine, and this index by {index.similarity}")
    import torch

    from dml.evaluation.postprocess import Sets

    queries = index.checked_queries(embeddings)
    depth = step.options["neighbours"] if step.name == "query_expansion" else max(DEPTH, k)
    _, near = index.search(queries, depth, where, exclude)
    expanded = queries.copy()
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for number, query in enumerate(queries):
        candidates = near[number][near[number] >= 0]
        if not len(candidates):
            continue
        sets = Sets(
            torch.from_numpy(query[None]),
            torch.from_numpy(index.vectors(candidates)),
            np.array([-1]),
        )
        if step.name == "query_expansion":
            expanded[number] = step.function(sets).query[0].numpy()
        else:
            similarity = step.function(sets)(slice(0, 1))[0]
            best = candidates[np.argsort(-similarity, kind="stable")][:k]
            rows[number, : len(best)] = best
    if step.name == "query_expansion":
        _, rows = index.search(expanded, k, where, exclude)
    plain = np.full(rows.shape, -np.inf, dtype=np.float32)
    for number, query in enumerate(queries):
        kept = rows[number] >= 0
        if kept.any():
            vectors = index.vectors(rows[number][kept])
            plain[number, kept] = scores(query[None], vectors[None], index.similarity)[0]
    return plain, rows
