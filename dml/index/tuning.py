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
    """What is missed, on a logarithmic scale, against queries per second: one line per index."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5.5), layout="constrained")
    best = frontier(rows)
    least = 0.5 / (rows[0].queries * rows[0].k)  # what finds all has no place on the scale
    for factory in dict.fromkeys(row.kind for row in rows):
        mine = sorted((r for r in rows if r.kind == factory), key=lambda r: r.recall)
        label = f"{factory}, {mine[0].bytes_per_image:,.0f} bytes"
        missed = [max(1 - row.recall, least) for row in mine]
        (line,) = axes.plot(missed, [r.queries_per_second for r in mine], "o-", label=label, ms=4)
        for x, row in zip(missed, mine, strict=True):
            at, value = (x, row.queries_per_second), row.parameters.partition("=")[2]
            if row in best:
                axes.plot(*at, "o", ms=9, mfc="none", color=line.get_color())
            style = {"fontsize": 7, "color": line.get_color(), "textcoords": "offset points"}
            axes.annotate(value, at, xytext=(5, 4), **style)
    axes.set(xscale="log", yscale="log", ylabel="queries per second", title=title)
    axes.set_xlabel(
        f"missed of the {rows[0].k} nearest: 1 - recall@{rows[0].k}; at the right edge: none"
    )
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    told = "index, bytes per image\ncircle: on the frontier\nnumber: nprobe or efSearch"
    figure.legend(loc="outside right upper", fontsize=8, title=told, title_fontsize=8)
    data: Any = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    pyplot.close(figure)
    with aside(path) as file:
        file.write(data.getvalue())


def best_above(rows: list[Measured], recall: float) -> Measured | None:
    """The quickest with at least this recall."""
    good = [row for row in rows if row.recall >= recall]
    return max(good, key=lambda row: row.queries_per_second, default=None)
