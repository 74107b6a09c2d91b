"""Speed and memory of the losses beside pytorch-metric-learning's, both in one run.

    python benchmarks/losses.py                                  # table, losses.csv, losses.png
    python benchmarks/losses.py --sizes 64 128 --losses circle triplet --out runs/bench
    python benchmarks/losses.py --device cuda

One measurement is forward plus backward of a batch of n embeddings of 128 dimensions, 4 per class
(2 for n_pair), the median over turns taken in alternation. ratio = theirs / ours: above 1 ours is
faster. Memory is the growth of the process's peak during one step, in a process of its own.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

DIM = 128
CLASSES = 11318  # training classes of Stanford Online Products
SIZES = (64, 128, 256, 512, 1024)
TARGETS = {  # ratio at 512 that we promise
    "contrastive": 1.5,
    "triplet": 5,
    "lifted_structure": 300,
    "n_pair": 1,
    "multi_similarity": 2,
    "circle": 2,
    "smooth_ap": 5,
    "proxy_nca": 1,
    "arcface": 1,
}
MEMORY_CASES = {"lifted_structure": 2048, "smooth_ap": 4096}  # each within MEMORY_LIMIT_MB
MEMORY_LIMIT_MB = 2048
XBM_SLOTS, XBM_BATCH, XBM_LIMIT_MS = 55_000, 64, 150
XBM_LOSSES = ("contrastive", "multi_similarity", "circle", "smooth_ap")
# pytorch-metric-learning's lifted structure loss needs n^2 x pairs and is killed beyond this.
THEIRS_UP_TO = {"lifted_structure": 512, "lifted_generalized": 1024, "smooth_ap": 1024}


def ours() -> dict:
    """Our losses, by the name of their file."""
    from dml import losses

    return {
        "contrastive": losses.Contrastive(),
        "triplet": losses.Triplet(),
        "lifted_structure": losses.LiftedStructure(),
        "lifted_generalized": losses.LiftedStructure(variant="generalized"),
        "n_pair": losses.NPair(l2_weight=0.0),
        "multi_similarity": losses.MultiSimilarity(),
        "circle": losses.Circle(),
        "smooth_ap": losses.SmoothAP(),
        "proxy_nca": losses.ProxyNCA(CLASSES, DIM, positive_in_denominator=True),
        "arcface": losses.ArcFace(CLASSES, DIM),
    }


def theirs() -> dict:
    """The same losses of pytorch-metric-learning, set to the same form where it has it."""
    from pytorch_metric_learning import distances, losses

    squared = distances.LpDistance(power=2)
    euclidean = distances.LpDistance(normalize_embeddings=False)
    dot = distances.DotProductSimilarity(normalize_embeddings=False)
    return {
        "contrastive": losses.ContrastiveLoss(),
        "triplet": losses.TripletMarginLoss(margin=0.2, distance=squared),
        "lifted_structure": losses.LiftedStructureLoss(distance=euclidean),
        "lifted_generalized": losses.GeneralizedLiftedStructureLoss(distance=euclidean),
        "n_pair": losses.NPairsLoss(distance=dot),
        # without its miner, the cheapest way to call it; ours mines inside
        "multi_similarity": losses.MultiSimilarityLoss(),
        "circle": losses.CircleLoss(),
        "smooth_ap": losses.SmoothAPLoss(),
        "proxy_nca": losses.ProxyNCALoss(CLASSES, DIM, softmax_scale=9),
        "arcface": losses.ArcFaceLoss(CLASSES, DIM),
    }


def batch(name: str, n: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings around class centres, and labels."""
    draw = torch.Generator().manual_seed(0)
    per_class = 2 if name == "n_pair" else 4
    labels = torch.arange(n) // per_class
    centres = torch.randn(n, DIM, generator=draw)[labels]
    x = torch.nn.functional.normalize(centres + torch.randn(n, DIM, generator=draw))
    return x.to(device).requires_grad_(), labels.to(device)


def step(loss, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward and backward."""
    for tensor in (x, *loss.parameters()):
        tensor.grad = None
    loss(x, labels).backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def race(losses: list, x: torch.Tensor, labels: torch.Tensor, budget: float) -> list[float]:
    """Median seconds of a step of each loss, taking turns so that both meet the same machine.

    Over as many rounds as fit the budget; a loss whose first step alone exceeds it is timed once.
    """
    times: list[list[float]] = [[] for _ in losses]
    for loss, taken in zip(losses, times, strict=True):
        start = time.perf_counter()
        step(loss, x, labels)
        taken.append(time.perf_counter() - start)
    slow = [taken[0] > budget for taken in times]
    for loss, taken, once in zip(losses, times, slow, strict=True):
        if not once:
            step(loss, x, labels)
            taken.clear()
    stop = time.perf_counter() + budget * len(losses)
    while (time.perf_counter() < stop and not all(slow)) or not all(times):
        for loss, taken, once in zip(losses, times, slow, strict=True):
            if not once:
                start = time.perf_counter()
                step(loss, x, labels)
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def memory(name: str, n: int, device: str) -> float:
    """MB that one step adds to the peak of a fresh process."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import losses as bench;"
        "bench.print_memory(sys.argv[2], int(sys.argv[3]), sys.argv[4])"
    )
    here = Path(__file__).resolve().parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(here), name, str(n), device],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_memory(name: str, n: int, device: str) -> None:
    """Body of the process that `memory` starts."""
    from dml.record import peak_resident

    loss = ours()[name].to(device)
    step(
        loss, *batch(name, 32, device)
    )  # what the first call of anything allocates is not the loss
    x, labels = batch(name, n, device)
    base = torch.cuda.memory_allocated() / 2**20 if x.is_cuda else peak_resident() / 2**20
    step(loss, x, labels)
    peak = torch.cuda.max_memory_allocated() / 2**20 if x.is_cuda else peak_resident() / 2**20
    print(json.dumps(peak - base))


def measure(arguments: argparse.Namespace) -> list[dict]:
    """One row per loss and size."""
    our_losses, their_losses = ours(), theirs()
    rows = []
    print(f"{'loss':20} {'n':>5} {'theirs ms':>10} {'ours ms':>9} {'ratio':>8} {'target':>7}")
    for name in arguments.losses or our_losses:
        for n in arguments.sizes:
            x, labels = batch(name, n, arguments.device)
            racers = [our_losses[name].to(arguments.device)]
            if n <= THEIRS_UP_TO.get(name, n):
                racers.append(their_losses[name].to(arguments.device))
            taken = [1e3 * t for t in race(racers, x, labels, arguments.budget)]
            our_ms, their_ms = taken[0], taken[1] if len(taken) > 1 else None
            ratio = their_ms / our_ms if their_ms else None
            target = TARGETS.get(name) if n == 512 else None
            row = {
                "loss": name,
                "n": n,
                "theirs_ms": their_ms and round(their_ms, 3),
                "ours_ms": round(our_ms, 3),
                "ratio": ratio and round(ratio, 2),
                "target": target,
                "memory_mb": None,
            }
            rows.append(row)
            shown = [f"{value:.2f}" if value else "-" for value in (their_ms, our_ms, ratio)]
            mark = "" if not target or not ratio or ratio >= target else "  BELOW TARGET"
            print(
                f"{name:20} {n:5} {shown[0]:>10} {shown[1]:>9} {shown[2]:>8} {target or '':>7}{mark}"
            )
    return rows


def measure_memory(arguments: argparse.Namespace) -> list[dict]:
    """One row per promise about memory."""
    rows = []
    for name, n in MEMORY_CASES.items():
        if arguments.losses and name not in arguments.losses:
            continue
        mb = memory(name, n, arguments.device)
        mark = "" if mb <= MEMORY_LIMIT_MB else "  ABOVE LIMIT"
        print(f"{name:20} {n:5} {mb:8.0f} MB above base, limit {MEMORY_LIMIT_MB}{mark}")
        rows.append({"loss": name, "n": n, "memory_mb": round(mb)})
    return rows


def xbm_step(memory, loss, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward and backward of a batch against itself and a cross-batch memory, as in training."""
    x.grad = None
    (loss(x, labels) + loss(x, labels, **memory.enqueue(x, labels))).backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def measure_xbm(arguments: argparse.Namespace) -> list[dict]:
    """One row per loss against a full memory; theirs where pytorch-metric-learning can."""
    from pytorch_metric_learning.losses import CrossBatchMemory as TheirMemory

    from dml.memory import CrossBatchMemory

    rows = []
    for name in [n for n in XBM_LOSSES if n in (arguments.losses or XBM_LOSSES)]:
        x, labels = batch(name, XBM_BATCH, arguments.device)
        draw = torch.Generator().manual_seed(1)
        queued = torch.nn.functional.normalize(torch.randn(XBM_SLOTS, DIM, generator=draw))
        classes = torch.randint(CLASSES, (XBM_SLOTS,), generator=draw)
        memory = CrossBatchMemory(XBM_SLOTS, DIM).to(arguments.device)
        memory.enqueue(queued.to(arguments.device), classes.to(arguments.device))
        loss = ours()[name].to(arguments.device)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            xbm_step(memory, loss, x, labels)
            times.append(1e3 * (time.perf_counter() - start))
        their_ms = None
        if name in ("contrastive", "multi_similarity", "circle"):
            their = TheirMemory(theirs()[name], DIM, memory_size=XBM_SLOTS).to(arguments.device)
            their.embedding_memory.copy_(queued)
            their.label_memory.copy_(classes)
            their.has_been_filled = True
            their_times = []
            for _ in range(10):
                start = time.perf_counter()
                step(their, x, labels)
                their_times.append(1e3 * (time.perf_counter() - start))
            their_ms = statistics.median(their_times)
        our_ms = statistics.median(times)
        ratio = their_ms / our_ms if their_ms else None
        mark = "" if our_ms <= XBM_LIMIT_MS else "  ABOVE LIMIT"
        shown = [f"{value:.2f}" if value else "-" for value in (their_ms, our_ms, ratio)]
        label = f"xbm {name}"
        print(
            f"{label:20} {XBM_BATCH:5} {shown[0]:>10} {shown[1]:>9} {shown[2]:>8}"
            f"   limit {XBM_LIMIT_MS} ms{mark}"
        )
        rows.append(
            {
                "loss": label,
                "n": XBM_BATCH,
                "theirs_ms": their_ms and round(their_ms, 3),
                "ours_ms": round(our_ms, 3),
                "ratio": ratio and round(ratio, 2),
            }
        )
    return rows


def write(rows: list[dict], arguments: argparse.Namespace) -> None:
    """losses.csv and losses.png in the folder asked for."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    setting = {
        "device": arguments.device,
        "machine": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    our_losses = ours()
    stem = "losses" if arguments.device == "cpu" else f"losses_{arguments.device}"
    with (arguments.out / f"{stem}.csv").open("w", newline="") as file:
        columns = ["loss", "n", "theirs_ms", "ours_ms", "ratio", "target", "memory_mb", *setting]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([row | setting for row in rows])
    plot(
        [row for row in rows if row["loss"] in our_losses and "theirs_ms" in row],
        arguments.out / f"{stem}.png",
        setting,
    )
    print(f"wrote {arguments.out / stem}.csv and .png")


def plot(rows: list[dict], path: Path, setting: dict) -> None:
    """Milliseconds against batch size, one panel per loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator

    names = list(dict.fromkeys(row["loss"] for row in rows))
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.6 * columns, 2.4 * lines), sharex=True, squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for key, label in (("theirs_ms", "pytorch-metric-learning"), ("ours_ms", "dml")):
            points = [(row["n"], row[key]) for row in rows if row["loss"] == name and row[key]]
            if points:
                axis.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.set_xticks([row["n"] for row in rows if row["loss"] == name])
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=6)
    figure.supxlabel("batch size", fontsize=9)
    figure.supylabel("ms, forward + backward", fontsize=9)
    figure.suptitle(
        f"{setting['device']}, {setting['threads']} threads, torch {setting['torch']}", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--losses", nargs="+", choices=sorted(ours()), default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds per measurement")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(arguments)
    rows += measure_xbm(arguments)
    if not arguments.no_memory:
        rows += measure_memory(arguments)
    write(rows, arguments)


if __name__ == "__main__":
    main()
