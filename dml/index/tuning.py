"""Sweep what an index can be built and searched with, and show the frontier of recall and speed."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dml.index import faiss_index, measuring
from dml.index.measuring import Measured
from dml.index.store import Index
from dml.record import aside

EF = (16, 32, 64, 128, 256)
PROBES = (1, 4, 16, 64, 256)
LINKS = (16, 32)


def candidates(count: int, dim: int) -> list[tuple[str, list[str]]]:
    """Factory strings and the search parameters to try with each."""
    ef = [f"efSearch={value}" for value in EF]
    found = [("Flat", [""])]
    found += [(f"HNSW{links}", ef) for links in LINKS]
    lists = faiss_index.lists(count)
    probes = [f"nprobe={value}" for value in PROBES if value <= lists]
    found.append((f"IVF{lists},Flat", probes))
    if count >= faiss_index.LEAST_PER_LIST * faiss_index.PQ_CODES:
        # fewer vectors cannot train 256 codes
        most = faiss_index.sub_quantisers(dim)
        bytes_each = sorted({most, *(m for m in (most // 2, most // 4) if m and dim % m == 0)})
        found += [(f"IVF{lists},PQ{m}", probes) for m in bytes_each]
    return found


def sweep(index: Index, progress: Callable[[float], None]) -> list[Measured]:
    """Every candidate built over the searchable images and measured; nothing is written."""
    truth = measuring.truth(index)
    tried = candidates(len(index), index.dim)
    rows = []
    for number, (factory, settings) in enumerate(tried):
        recipe = faiss_index.recipe("flat" if factory == "Flat" else factory, len(index), index.dim)

        def told(share: float, number: int = number) -> None:
            progress((number + share) / len(tried))

        built = faiss_index.build(recipe, index.all_vectors(), index.similarity, told)
        for parameters in settings:
            if built is not None:
                faiss_index.set_parameters(built, parameters)
            trial = index.searched_with(built, recipe, parameters)
            rows.append(measuring.measure(trial, truth))
    return rows


def frontier(rows: list[Measured]) -> list[Measured]:
    """Those that no other beats in recall, speed and memory at once, by speed."""

    def beaten(row: Measured) -> bool:
        return any(
            other.recall >= row.recall
            and other.queries_per_second >= row.queries_per_second
            and other.bytes_per_image <= row.bytes_per_image
            and other != row
            for other in rows
        )

    return sorted((r for r in rows if not beaten(r)), key=lambda r: -r.queries_per_second)


def write_csv(rows: list[Measured], path: Path) -> None:
    """All that was measured, aside, then renamed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["on_frontier", *rows[0].as_dict()])
    writer.writeheader()
    best = frontier(rows)
    for row in rows:
        writer.writerow({"on_frontier": row in best, **row.as_dict()})
    with aside(path) as file:
        file.write(text.getvalue().encode())


def plot(rows: list[Measured], path: Path, title: str) -> None:
    """Recall against queries per second, one line per index; larger marks take more memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    best = frontier(rows)
    for factory in dict.fromkeys(row.kind for row in rows):
        mine = sorted((r for r in rows if r.kind == factory), key=lambda r: r.recall)
        label = f"{factory} ({mine[0].bytes_per_image:,.0f} bytes per image)"
        recall = [row.recall for row in mine]
        (line,) = axes.plot(recall, [r.queries_per_second for r in mine], "o-", label=label, ms=4)
        for row in mine:
            if row in best:
                at = (row.recall, row.queries_per_second)
                axes.plot(*at, "o", ms=9, mfc="none", color=line.get_color())
                axes.annotate(
                    row.parameters, at, fontsize=7, xytext=(5, 4), textcoords="offset points"
                )
    axes.set(xlabel=f"recall@{rows[0].k}", ylabel="queries per second", yscale="log", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="circles: on the frontier", title_fontsize=8)
    data: Any = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    pyplot.close(figure)
    with aside(path) as file:
        file.write(data.getvalue())


def best_above(rows: list[Measured], recall: float) -> Measured | None:
    """The quickest with at least this recall."""
    good = [row for row in rows if row.recall >= recall]
    return max(good, key=lambda row: row.queries_per_second, default=None)
