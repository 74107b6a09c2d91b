"""Time and memory of `dml.evaluation.evaluate` beside a bare faiss search and PML's evaluator.

    python benchmarks/evaluation.py                        # SOP's and CUB's shape, two threads
    python benchmarks/evaluation.py rows=6000              # quick
    python benchmarks/evaluation.py data=random pml=true shapes=sop

Options: rows (of the SOP shape; classes in proportion), threads, data (clustered | random),
shapes (comma separated: sop, cub), sides (comma separated: faiss, pml, dml_torch, dml_faiss),
pml=true adds PML to the default sides. Each side runs in a process of its own on the same
embeddings; memory is the peak of that process above what it held with the embeddings loaded.
Ratios are of wall time, to the first side; processor time (cpu) tells whether the machine was quiet:
with two threads it is about twice the wall time.

faiss wheels bring an OpenBLAS that may not know a new processor and then computes several times
slower than it could. Every side therefore runs with OPENBLAS_CORETYPE=SkylakeX where the processor
has AVX-512 and the variable is not set; as_installed=true leaves the environment alone.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SOP_ROWS, SOP_CLASSES, DIM = 60502, 11316, 512
METRICS = {
    "sop": ("recall@1", "recall@10", "recall@100", "recall@1000", "map@r", "r_precision"),
    "cub": ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision"),
}
NOISE = 2.6  # of a class, in units of the spread of class centres


def embeddings(shape: str, rows: int, data: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 unit vectors [n, 512] and int64 labels: SOP's test shape (scaled) or CUB's."""
    rng = np.random.default_rng(0)
    if shape == "cub":
        sizes = np.full(100, 59)
        sizes[:24] += 1  # 5,924 images in 100 classes
    else:
        classes = max(1, round(SOP_CLASSES * rows / SOP_ROWS))
        sizes = rng.integers(2, 13, classes)
        while sizes.sum() != rows:  # SOP's mean is 5.3 images a class
            i = rng.integers(classes)
            sizes[i] = np.clip(sizes[i] + np.sign(rows - sizes.sum()), 2, 12)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = rng.permutation(labels)
    x = rng.standard_normal((len(labels), DIM), dtype=np.float32)
    if data == "clustered":
        x = x * np.float32(NOISE) + rng.standard_normal((len(sizes), DIM), dtype=np.float32)[labels]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, labels


def run_side(side: str, shape: str, folder: Path, threads: int) -> dict:
    """In a process of its own: load, measure, evaluate."""
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    x, labels = np.load(folder / "x.npy"), np.load(folder / "labels.npy")
    if side.startswith("dml"):
        from dml.evaluation import evaluate
    if side == "pml":
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    # Libraries load parts of themselves at first use; that is not the side's memory.
    faiss.knn(x[:64], x[:64], 2, metric=faiss.METRIC_INNER_PRODUCT)
    before = peak_kilobytes()
    start, cpu = time.perf_counter(), time.process_time()
    if side == "faiss":
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        index.search(x, min(len(x), 1001 if shape == "sop" else 60))
        metrics = {}
    elif side == "pml":
        calculator = AccuracyCalculator(
            include=("precision_at_1", "mean_average_precision_at_r", "r_precision"),
            k="max_bin_count",
            device=torch.device("cpu"),
        )
        metrics = calculator.get_accuracy(torch.from_numpy(x), torch.from_numpy(labels))
    else:
        metrics = evaluate(x, labels, metrics=METRICS[shape], backend=side.removeprefix("dml_"))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_kilobytes() - before
    return {"seconds": seconds, "cpu": cpu, "megabytes": peak / 1024, "metrics": metrics}


def peak_kilobytes() -> int:
    """Highest resident memory of this process so far.

    Not getrusage: there a process starts at the peak of the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def has_avx512() -> bool:
    path = Path("/proc/cpuinfo")
    return path.exists() and "avx512f" in path.read_text()


def main(arguments: list[str]) -> None:
    options = {"rows": SOP_ROWS, "threads": 2, "data": "clustered", "shapes": "sop,cub"}
    options |= {"sides": "faiss,dml_torch,dml_faiss", "pml": "false", "as_installed": "false"}
    given = dict(argument.split("=", 1) for argument in arguments)
    if unknown := set(given) - set(options):
        sys.exit(f"unknown option {', '.join(unknown)}; known: {', '.join(options)}")
    options |= given
    environment = dict(os.environ)
    if options["as_installed"] != "true" and has_avx512():
        environment.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    sides = options["sides"].split(",") + (["pml"] if options["pml"] == "true" else [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape in options["shapes"].split(","):
            x, labels = embeddings(shape, int(options["rows"]), options["data"])
            np.save(folder / "x.npy", x)
            np.save(folder / "labels.npy", labels)
            print(
                f"\n{shape}: {len(x)} x {DIM}, {labels.max() + 1} classes, {options['data']}, "
                f"{options['threads']} threads; bare faiss: IndexFlatIP.search, "
                f"k={1001 if shape == 'sop' else 60}"
            )
            base = None
            for side in sides:
                command = [sys.executable, __file__, "--side", side, shape, name]
                output = subprocess.run(
                    [*command, str(options["threads"])],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                ).stdout
                result = json.loads(output.splitlines()[-1])
                base = base or result["seconds"]
                values = "  ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items())
                print(
                    f"  {side:10} {result['seconds']:8.2f} s  x{result['seconds'] / base:5.2f}"
                    f"  cpu {result['cpu']:8.2f} s  {result['megabytes']:7.0f} MB  {values}",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        side, shape, folder, threads = sys.argv[2:]
        print(json.dumps(run_side(side, shape, Path(folder), int(threads))))
    else:
        main(sys.argv[1:])
