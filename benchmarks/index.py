"""Recall, speed and memory of the kinds of index, on made vectors.

    python benchmarks/index.py [n=1000000] [dim=128] [queries=1000] [kinds=flat,hnsw,ivf_pq] [work=DIR]

Vectors drawn at random have no neighbours worth the name: every distance is nearly the same, and no index
finds what does not stand out. These are made as embeddings are: 10,000 classes, each a point of 24
coordinates drawn from N(0, 1); an image is its class's point plus 0.6 N(0, 1), mapped to `dim` numbers by
one random matrix, with N(0, 1) / 20 added to each number, and scaled to length 1. Queries are made alike
and are not in the index. Compared by cosine, seeded.

Each index is built, opened and searched as `dml-index` and `dml-search` do it. On a busy machine the seconds
of the clock say little: CPU seconds of all threads stand beside them. Appends a line to
benchmarks/index.csv (out=FILE) as each is done, so that one kind can be measured at a time.
"""

import csv
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from dml.data.progress import share_bar
from dml.index import faiss_index, measuring, open_index, writing

CLASSES, LATENT, WITHIN, NOISE = 10_000, 24, 0.6, 1 / 20


def made(count: int, dim: int, seed: int) -> np.ndarray:
    """float32 [count, dim], the same classes whatever the seed."""
    fixed = np.random.default_rng(0)
    centres = fixed.normal(size=(CLASSES, LATENT)).astype(np.float32)
    projection = (fixed.normal(size=(LATENT, dim)) / LATENT**0.5).astype(np.float32)
    rng = np.random.default_rng(seed)
    found = np.empty((count, dim), dtype=np.float32)
    for start in range(0, count, 100_000):
        part = found[start : start + 100_000]
        points = centres[rng.integers(0, CLASSES, len(part))]
        points = points + WITHIN * rng.standard_normal(points.shape, dtype=np.float32)
        part[:] = points @ projection + NOISE * rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return found


def main() -> None:
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    out = Path(options.pop("out", Path(__file__).with_suffix(".csv")))
    count, dim = int(options.pop("n", 1_000_000)), int(options.pop("dim", 128))
    queries = made(int(options.pop("queries", 1000)), dim, seed=2)
    kinds = options.pop("kinds", "flat,hnsw,ivf_pq").split(",")
    work = Path(options.pop("work", tempfile.gettempdir()))
    if options:
        sys.exit(f"unknown: {', '.join(options)}")
    vectors, paths = made(count, dim, seed=1), [f"{number}.jpg" for number in range(count)]
    truth, rows = None, []
    for kind in kinds:
        directory = Path(tempfile.mkdtemp(dir=work))
        recipe = faiss_index.recipe(kind, count, dim)
        try:
            begin, cpu = time.perf_counter(), time.process_time()
            source = writing.Source(None, paths, [None] * count, vectors)
            with share_bar(f"building {recipe.factory}") as progress:
                writing.create(directory, source, "cosine", None, recipe, progress)
            build, cpu = time.perf_counter() - begin, time.process_time() - cpu
            begin = time.perf_counter()
            index = open_index(directory)
            opening = time.perf_counter() - begin
            truth = truth or measuring.truth(index, queries=queries)
            row = measuring.measure(index, truth)
            index.close()
        finally:
            shutil.rmtree(directory)
        rows.append(row)
        entry = {"n": count, "dim": dim, "index": kind, **row.as_dict()}
        entry |= {"build_seconds": round(build, 1), "build_cpu_seconds": round(cpu, 1)}
        entry |= {"open_seconds": round(opening, 2)}
        entry |= {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "faiss": faiss.__version__,
        }
        append(out, entry)
        print(entry, flush=True)
    from rich.console import Console

    Console().print(measuring.table(rows))


def append(path: Path, entry: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, entry)
        if new:
            writer.writeheader()
        writer.writerow(entry)


if __name__ == "__main__":
    main()
