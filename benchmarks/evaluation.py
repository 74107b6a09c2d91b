"""Time and memory of `dml.evaluation.evaluate` beside a bare faiss search and PML's evaluator.

    python benchmarks/evaluation.py                        # table and evaluation.csv, two threads
    python benchmarks/evaluation.py rows=6000 out=runs     # quick
    python benchmarks/evaluation.py shapes=million sides=dml_torch,dml_faiss out=runs

Options: shapes (comma separated: sop, cub, million), rows (of the SOP shape; classes in proportion),
threads, data (clustered | random), sides (comma separated: faiss, pml, dml_torch, dml_faiss), out
(folder of evaluation.csv; its rows of other shapes and data stay). Each side runs in a process of its
own on the same embeddings; memory is the peak of that process above what it held with the embeddings
loaded. Ratios are of wall time, below 1 is faster; processor time (cpu) tells whether the machine was
quiet: with two threads it is about twice the wall time. PML computes precision@1, MAP@R and
R-precision only.

faiss wheels bring an OpenBLAS that may not know a new processor and then computes several times
slower than it could. Every side therefore runs with OPENBLAS_CORETYPE=SkylakeX where the processor
has AVX-512 and the variable is not set; as_installed=true leaves the environment alone.
"""

import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SOP_ROWS, SOP_CLASSES = 60502, 11316
MILLION, MILLION_QUERIES = 1_000_000, 10_000
DIMS = {"sop": 512, "cub": 512, "million": 128}
METRICS = {
    "sop": ("recall@1", "recall@10", "recall@100", "recall@1000", "map@r", "r_precision"),
    "cub": ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision"),
    "million": ("recall@1", "recall@10", "recall@100", "map@r", "r_precision"),
}
DEPTH = {"sop": 1001, "cub": 60, "million": 100}  # neighbours of the bare search
# Of a class, in units of the spread of class centres; less where the vectors are shorter.
NOISE = {"sop": 2.6, "cub": 2.6, "million": 1.2}
COLUMNS = ("shape", "data", "rows", "side", "seconds", "to_faiss", "to_pml", "cpu_seconds")
COLUMNS += ("megabytes", "threads", "machine", "torch", "faiss")


def embeddings(shape: str, rows: int, data: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 unit vectors [n, d] and int64 labels: SOP's test shape (scaled), CUB's, or a million.

    Of the million and ten thousand, the first ten thousand are queries and the rest their gallery.
    """
    rng = np.random.default_rng(0)
    if shape == "cub":
        sizes = np.full(100, 59)
        sizes[:24] += 1  # 5,924 images in 100 classes
    elif shape == "million":
        sizes = np.full((MILLION + MILLION_QUERIES) // 10, 10)
    else:
        classes = max(1, round(SOP_CLASSES * rows / SOP_ROWS))
        sizes = rng.integers(2, 13, classes)
        while sizes.sum() != rows:  # SOP's mean is 5.3 images a class
            i = rng.integers(classes)
            sizes[i] = np.clip(sizes[i] + np.sign(rows - sizes.sum()), 2, 12)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = rng.permutation(labels)
    dim = DIMS[shape]
    x = rng.standard_normal((len(labels), dim), dtype=np.float32)
    if data == "clustered":
        x *= np.float32(NOISE[shape])
        x += rng.standard_normal((len(sizes), dim), dtype=np.float32)[labels]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, labels


def run_side(side: str, shape: str, folder: Path, threads: int) -> dict:
    """In a process of its own: load, measure, evaluate."""
    import faiss
    import torch

    from dml.record import peak_resident

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    x, labels = np.load(folder / "x.npy"), np.load(folder / "labels.npy")
    query, gallery, own, other = x, x, labels, labels
    if shape == "million":
        query, gallery = x[:MILLION_QUERIES], x[MILLION_QUERIES:]
        own, other = labels[:MILLION_QUERIES], labels[MILLION_QUERIES:]
    if side.startswith("dml"):
        from dml.evaluation import evaluate
    if side == "pml":
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    # Libraries load parts of themselves at first use; that is not the side's memory.
    faiss.knn(x[:64], x[:64], 2, metric=faiss.METRIC_INNER_PRODUCT)
    before = peak_resident()
    start, cpu = time.perf_counter(), time.process_time()
    if side == "faiss":
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(gallery)  # pyright: ignore[reportCallIssue]
        index.search(query, min(len(gallery), DEPTH[shape]))  # pyright: ignore[reportCallIssue]
        metrics = {}
    elif side == "pml":
        calculator = AccuracyCalculator(
            include=("precision_at_1", "mean_average_precision_at_r", "r_precision"),
            k="max_bin_count",
            device=torch.device("cpu"),
        )
        arrays = (query, own) if query is gallery else (query, own, gallery, other)
        metrics = calculator.get_accuracy(*map(torch.from_numpy, arrays))
    else:
        options = {"metrics": METRICS[shape], "backend": side.removeprefix("dml_")}
        if query is not gallery:
            options |= {"gallery": gallery, "gallery_labels": other}
        metrics = evaluate(query, own, **options)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_resident() - before
    return {"seconds": seconds, "cpu": cpu, "megabytes": peak / 2**20, "metrics": metrics}


def has_avx512() -> bool:
    path = Path("/proc/cpuinfo")
    return path.exists() and "avx512f" in path.read_text()


def measure(shape: str, options: dict[str, str]) -> list[dict]:
    """All sides on one shape, printed as they end; one row of the table each."""
    import faiss
    import torch

    environment = dict(os.environ)
    if options["as_installed"] != "true" and has_avx512():
        environment.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    data, threads = options["data"], options["threads"]
    x, labels = embeddings(shape, int(options["rows"]), data)
    size, classes = "{} x {}".format(*x.shape), labels.max() + 1
    print(
        f"\n{shape}: {size}, {classes} classes, {data}, {threads} threads; "
        f"bare faiss: IndexFlatIP.search, k={DEPTH[shape]}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", x)
        np.save(Path(folder) / "labels.npy", labels)
        fixed = {"shape": shape, "data": data, "rows": len(x), "threads": threads}
        fixed |= {"machine": platform.machine(), "torch": torch.__version__.split("+")[0]}
        fixed |= {"faiss": faiss.__version__}
        del x, labels
        for side in options["sides"].split(","):
            command = [sys.executable, __file__, "--side", side, shape, folder, threads]
            output = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout
            result = json.loads(output.splitlines()[-1])
            found = {"side": side, "seconds": round(result["seconds"], 3)}
            found |= {"cpu_seconds": round(result["cpu"], 3)}
            rows.append(fixed | found | {"megabytes": round(result["megabytes"])})
            values = "  ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items())
            print(f"  {side:10} {result['seconds']:8.2f} s  {values}", flush=True)
    seconds = {row["side"]: row["seconds"] for row in rows}
    for row in rows:
        for other in ("faiss", "pml"):
            row[f"to_{other}"] = (
                round(row["seconds"] / seconds[other], 2) if other in seconds else ""
            )
    print("  side        seconds  to faiss  to pml      cpu      MB")
    for row in rows:
        print(
            f"  {row['side']:10} {row['seconds']:8.2f}  {row['to_faiss']:>8}  {row['to_pml']:>6} "
            f"{row['cpu_seconds']:8.2f} {row['megabytes']:7}"
        )
    return rows


def save(rows: list[dict], path: Path) -> None:
    """Put the rows in place of those of the same shape and data; aside, then renamed."""
    measured = {(row["shape"], row["data"]) for row in rows}
    if path.exists():
        with path.open(newline="") as file:
            kept = [r for r in csv.DictReader(file) if (r["shape"], r["data"]) not in measured]
        rows = kept + rows
    aside = path.with_suffix(".csv.part")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    aside.rename(path)


def main(arguments: list[str]) -> None:
    options = {"rows": str(SOP_ROWS), "threads": "2", "data": "clustered", "shapes": "sop,cub"}
    options |= {"sides": "faiss,pml,dml_torch,dml_faiss", "as_installed": "false"}
    options |= {"out": str(Path(__file__).parent)}
    given = dict(argument.split("=", 1) for argument in arguments)
    if unknown := set(given) - set(options):
        sys.exit(f"unknown option {', '.join(unknown)}; known: {', '.join(options)}")
    options |= given
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    for shape in options["shapes"].split(","):
        save(measure(shape, options), out / "evaluation.csv")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        side, shape, folder, threads = sys.argv[2:]
        print(json.dumps(run_side(side, shape, Path(folder), int(threads))))
    else:
        main(sys.argv[1:])
