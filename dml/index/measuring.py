"""What an index finds, how quickly, and in how much memory."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from dml.index import faiss_index
from dml.index.store import Index
from dml.index.vectors import exact_candidates, scores

QUERIES = 1000
K = 10
ROUNDING = 1e-6
REPEATS = 3


@dataclass(frozen=True)
class Measured:
    """One way to search, measured.

    recall: share of the k nearest that it finds, by exact search; one that ties with the k-th counts.
    queries_per_second: all queries in one call.  cpu_seconds: what they took of all cores, which other
    work on the machine does not change.  bytes_per_image: of the Faiss index in memory; the vectors
    themselves, where they are compared.
    """

    kind: str
    parameters: str
    recall: float
    queries_per_second: float
    cpu_seconds: float
    bytes_per_image: float
    queries: int
    threads: int
    k: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return asdict(self)


@dataclass(frozen=True)
class Truth:
    """Queries and the score of the k-th of their nearest.

    queries: float32 [q, dim].  own: int64 [q], the row that is the query itself, or -1.
    least: float32 [q].  k: how many neighbours count.
    """

    queries: np.ndarray
    own: np.ndarray
    least: np.ndarray
    k: int


def truth(index: Index, k: int = K, queries: np.ndarray | None = None, seed: int = 0) -> Truth:
    """The exact neighbours of queries, or (None) of images of the index drawn by `seed`."""
    if queries is None:
        live = index.live_rows()
        rng = np.random.default_rng(seed)
        own = np.sort(rng.choice(live, min(QUERIES, len(live)), replace=False))
        queries = index.vectors(own)
    else:
        queries = index.checked_queries(queries)
        own = np.full(len(queries), -1)
    k = min(k, len(index) - int((own >= 0).any()))
    rows = None if len(index) == index.rows else index.live_rows()
    extra = 8  # rounding in Faiss may swap the last ones
    near = exact_candidates(
        queries, index.all_vectors(), index.similarity, min(k + 1 + extra, len(index)), rows
    )
    least = np.full(len(queries), -np.inf, dtype=np.float32)
    for start in range(0, len(queries) if k else 0, 256):
        part = slice(start, start + 256)
        found = index.vectors(near[part].ravel()).reshape(*near[part].shape, index.dim)
        score = scores(queries[part], found, index.similarity)
        score[near[part] == own[part, None]] = -np.inf
        least[part] = -np.sort(-score, axis=1)[:, k - 1]
    return Truth(queries, own, least, k)


def measure(index: Index, truth: Truth) -> Measured:
    """Recall and speed of an index as it is opened; speed is the best of some searches."""
    import faiss

    found, seconds, cpu = timed_search(index, truth)
    for _ in range(REPEATS - 1):
        if seconds > 1:
            break
        _, *again = timed_search(index, truth)
        seconds, cpu = min(seconds, again[0]), min(cpu, again[1])
    # Within rounding of the k-th score, however the queries were put together.
    least = truth.least - ROUNDING * np.maximum(1, np.abs(truth.least))
    recall = float((found >= least[:, None]).mean()) if truth.k else 1.0
    size = 4 * index.dim
    if index.faiss_index is not None:
        size = faiss_index.size_of(index.faiss_index) / index.rows
    return Measured(
        kind=index.manifest["search"]["factory"],
        parameters=index.manifest["search"]["parameters"],
        recall=recall,
        queries_per_second=len(truth.queries) / max(seconds, 1e-9),
        cpu_seconds=cpu,
        bytes_per_image=size,
        queries=len(truth.queries),
        threads=faiss.omp_get_max_threads(),
        k=truth.k,
    )


def timed_search(index: Index, truth: Truth) -> tuple[np.ndarray, float, float]:
    """Scores [q, k], seconds of the clock, and seconds of all cores."""
    begin, cpu = time.perf_counter(), time.process_time()
    found, _ = index.search(truth.queries, max(truth.k, 1), exclude=truth.own)
    return found, time.perf_counter() - begin, time.process_time() - cpu


def table(rows: list[Measured]) -> Table:
    """Recall, speed and memory, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("index")
    table.add_column("parameters")
    for column in (f"recall@{rows[0].k}", "queries/s", "bytes per image"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.kind,
            row.parameters or "-",
            f"{row.recall:.4f}",
            f"{row.queries_per_second:,.0f}",
            f"{row.bytes_per_image:,.0f}",
        )
    return table


def footnote(row: Measured, dim: int) -> str:
    """What the numbers of the table mean."""
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    return (
        f"{row.queries:,} queries, each left out of its own results; against exact search; {threads}. "
        f"Bytes in memory; on disk {4 * dim:,} more per image, the vectors that candidates are "
        "compared by."
    )
