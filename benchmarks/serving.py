"""Speed of the way from an import to an answer over HTTP, each beside the plain way of doing it.

    python benchmarks/serving.py bundle=BUNDLE root=DIR index=INDEX [part=all] [clients=50] [seconds=60]
                                 [images=512] [rounds=5] [batch=64]

bundle: as dml-export writes it; with format=onnx, that graph is measured, too.  root: a folder of images.
index: built of them by that bundle (dml-index encoder=BUNDLE images=DIR out=INDEX).

part=import   `import dml` in a fresh interpreter, less the interpreter itself; target: under 0.2 s.
part=first    from `import` to the first embedding: load_encoder against timm and the same weights.
part=embed    images a second, files to embeddings: the exported encoder against a plain loop of timm and
              torchvision with the same preprocessing, and the ONNX graph; in turns, one thread each decodes.
              Target: ratio of the first two at least 0.95. The embeddings are compared, too.
part=serve    `dml-search serve=true` in a process of its own; `clients` at once, each sending one image
              after another for `seconds`. Target: no error, memory that does not grow. The clients share
              the machine's cores with the server.

OMP_NUM_THREADS sets the threads of all sides. Exit code 1 where a target is missed.
"""

import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DEFAULTS = {
    "bundle": "",
    "root": "",
    "index": "",
    "part": "all",
    "clients": "50",
    "seconds": "60",
    "images": "512",
    "rounds": "5",
    "batch": "64",
}
PARTS = ("import", "first", "embed", "serve")
MOST_IMPORT = 0.2  # seconds
LEAST_RATIO = 0.95
MOST_GROWTH = 1.05  # of resident memory, from a fifth of the time on
MIB = 1 << 20


def photographs(root: Path, count: int) -> list[Path]:
    """Evenly from the whole folder."""
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(found) < count:
        raise SystemExit(f"root={root} has {len(found)} images, fewer than images={count}")
    return found[:: len(found) // count][:count]


def spawned(code: str, *words: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    return done.stdout


def import_time(rounds: int) -> bool:
    """Seconds of `import dml`, in turns with an interpreter that does nothing."""
    sides: dict[str, list[float]] = {"pass": [], "import dml": []}
    for _ in range(rounds + 1):
        for code, seconds in sides.items():
            start = time.perf_counter()
            spawned(code)
            seconds.append(time.perf_counter() - start)
    plain, ours = (statistics.median(seconds[1:]) for seconds in sides.values())
    print(
        f"import   interpreter {plain:.3f} s, with `import dml` {ours:.3f} s: {ours - plain:.3f} s"
    )
    return ours - plain < MOST_IMPORT


# The plain way: what a user of timm would write for this network.
PLAIN = """
import json, time
start = time.perf_counter()
from pathlib import Path
import timm, torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms

class Plain(nn.Module):
    def __init__(self, bundle):
        super().__init__()
        told = json.loads((Path(bundle) / "encoder.json").read_text())
        head, weights = told["head"], load_file(Path(bundle) / "weights.safetensors")
        if head["pooling"] != "avg" or head["layer_norm"] or not head["dim"]:
            raise SystemExit("the plain side knows average pooling and a linear head alone")
        self.trunk = timm.create_model(
            told["backbone"]["name"], num_classes=0, **told["backbone"]["kwargs"]
        )
        prefix = "trunk.model."
        self.trunk.load_state_dict(
            {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix)}
        )
        self.head = nn.Linear(*reversed(weights["head.linear.weight"].shape))
        self.head.load_state_dict(
            {k: weights[f"head.linear.{k}"] for k in ("weight", "bias")}
        )
        self.normalized = told["normalized"]
        how = told["preprocess"]
        self.transform = transforms.Compose([
            transforms.Resize(
                how["resize"], transforms.InterpolationMode(how["interpolation"])
            ),
            transforms.CenterCrop(how["image_size"]),
            transforms.ToTensor(),
            transforms.Normalize(how["mean"], how["std"]),
        ])
        self.eval()

    def forward(self, images):
        found = self.head(self.trunk(images))
        return nn.functional.normalize(found) if self.normalized else found

    @torch.inference_mode()
    def embed(self, paths, batch):
        parts = []
        for start in range(0, len(paths), batch):
            images = [self.transform(Image.open(p).convert("RGB")) for p in paths[start:start + batch]]
            parts.append(self(torch.stack(images)))
        return torch.cat(parts)
"""
FIRST_PLAIN = (
    PLAIN
    + """
import sys
Plain(sys.argv[1]).embed([sys.argv[2]], 1)
print(time.perf_counter() - start)
"""
)
FIRST_OURS = """
import time
start = time.perf_counter()
import sys, dml
dml.load_encoder(sys.argv[1])([sys.argv[2]])
print(time.perf_counter() - start)
"""


def first_embedding(bundle: str, image: Path, rounds: int) -> bool:
    """Seconds from the import to the first embedding."""
    sides: dict[str, list[float]] = {FIRST_PLAIN: [], FIRST_OURS: []}
    for _ in range(rounds + 1):
        for code, seconds in sides.items():
            seconds.append(float(spawned(code, bundle, str(image))))
    plain, ours = (statistics.median(seconds[1:]) for seconds in sides.values())
    print(
        f"first    plain timm {plain:.2f} s, load_encoder (checks files and probe) {ours:.2f} s: "
        f"ratio {ours / plain:.2f}"
    )
    return True


def embedding_rate(bundle: str, paths: list[Path], batch: int, rounds: int) -> bool:
    """Images a second of each side, and that they compute the same."""
    import numpy as np
    import torch

    import dml

    names = {}
    exec(PLAIN, names)
    plain, encoder = names["Plain"](bundle), dml.load_encoder(bundle)
    sides: dict[str, Callable[[], np.ndarray]] = {
        "plain timm": lambda: plain.embed(paths, batch).numpy(),
        "exported": lambda: encoder.embed(paths, batch_size=batch).numpy(),
    }
    graph = Path(bundle) / "encoder.onnx"
    if graph.is_file():
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(graph, settings, ["CPUExecutionProvider"])

        def onnx() -> np.ndarray:
            parts = []
            for start in range(0, len(paths), batch):
                pixels = [encoder.pixels(path) for path in paths[start : start + batch]]
                parts.append(session.run(None, {"images": torch.stack(pixels).numpy()})[0])
            return np.concatenate(parts)

        sides["ONNX"] = onnx
    else:
        print("embed    ONNX NOT MEASURED: the bundle has no encoder.onnx")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found = {}
    for _ in range(rounds + 1):
        for name, embed in sides.items():
            start = time.perf_counter()
            found[name] = embed()
            seconds[name].append(time.perf_counter() - start)
    counted = {name: values[1:] for name, values in seconds.items()}
    rates = {name: len(paths) * rounds / sum(values) for name, values in counted.items()}
    for name in sides:
        a, b = found[name], found["plain timm"]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        pairs = zip(counted["plain timm"], counted[name], strict=True)
        ratios = sorted(theirs / ours for theirs, ours in pairs)
        print(
            f"embed    {name:10} {rates[name]:7.1f} images/s, ratio {rates[name] / rates['plain timm']:.3f} "
            f"(rounds {ratios[0]:.3f} to {ratios[-1]:.3f}), smallest cosine to plain {cosine.min():.6f}"
        )
    return rates["exported"] / rates["plain timm"] >= LEAST_RATIO


def resident(pid: int) -> float:
    """Resident memory of a process in MiB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) * 1024 / MIB


async def client(url: str, images: list[bytes], number: int, until: float, done: list) -> None:
    """Sends one image after another; (seconds, error or None) of each go to `done`."""
    import httpx

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while time.perf_counter() < until:
            number += 1
            files = {"image": ("image", images[number * 7919 % len(images)])}
            start, error = time.perf_counter(), None
            try:
                answer = await http.post("/api/search", files=files)
                if answer.status_code != 200 or len(answer.json()["results"]) != 12:
                    error = f"{answer.status_code} {answer.text[:200]}"
            except httpx.HTTPError as failure:
                error = repr(failure)
            done.append((time.perf_counter() - start, error))


async def memory(pid: int, until: float, samples: list[float]) -> None:
    """Resident memory, twice a second."""
    while time.perf_counter() < until:
        samples.append(resident(pid))
        await asyncio.sleep(0.5)


async def load(url: str, pid: int, images: list[bytes], clients: int, seconds: float):
    """All clients at once; what they met, and the server's memory meanwhile."""
    await asyncio.gather(  # warm, not counted
        *(client(url, images, n, time.perf_counter() + 2, []) for n in range(clients))
    )
    done, samples, until = [], [], time.perf_counter() + seconds
    await asyncio.gather(
        memory(pid, until, samples),
        *(client(url, images, 1000 * n, until, done) for n in range(clients)),
    )
    return done, samples


def serving(index: str, bundle: str, paths: list[Path], clients: int, seconds: float) -> bool:
    """The server under load."""
    import httpx
    import numpy as np

    code = "from dml.cli import search; search()"
    words = [f"index={index}", f"encoder={bundle}", "serve=true", "port=0"]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    try:
        said = server.stdout.readline()
        found = re.search(r"http://\S+:\d+", said)
        if found is None:
            raise SystemExit(said + server.stdout.read())
        url = found.group()
        images = [path.read_bytes() for path in paths]
        started = resident(server.pid)
        begin = time.perf_counter()
        done, samples = asyncio.run(load(url, server.pid, images, clients, seconds))
        took = time.perf_counter() - begin - 2
        health = json.loads(httpx.get(f"{url}/api/health").text)
        server.send_signal(signal.SIGTERM)
        stopped = server.wait(20) == 0
    finally:
        server.kill()
    errors = [error for _, error in done if error is not None]
    times = 1000 * np.array([each for each, _ in done])
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    early, late = max(samples[: len(samples) // 5 + 1]), samples[-1]
    print(
        f"serve    {clients} clients, {took:.0f} s, {health['images']:,} images: {len(done):,} requests, "
        f"{len(done) / took:.1f} a second, {len(errors)} errors\n"
        f"serve    p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, slowest {times.max():.0f} ms; "
        f"{health['embedded'] / health['batches']:.1f} images a batch\n"
        f"serve    memory before {started:.0f} MiB, in the first fifth at most {early:.0f}, at the end "
        f"{late:.0f}: ratio {late / early:.3f}; stopped cleanly: {'yes' if stopped else 'NO'}"
    )
    for error in sorted(set(errors))[:5]:
        print(f"serve    {error}")
    return not errors and stopped and late / early <= MOST_GROWTH


def main() -> int:
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if unknown := given.keys() - DEFAULTS:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}\n\n{__doc__}")
    chosen = DEFAULTS | given
    parts = PARTS if chosen["part"] == "all" else tuple(chosen["part"].split(","))
    if wrong := set(parts) - set(PARTS):
        raise SystemExit(f"part={','.join(sorted(wrong))} is none of {', '.join(PARTS)}")
    for name in ("bundle", "root") if parts != ("import",) else ():
        if not Path(chosen[name] or "-").is_dir():
            raise SystemExit(f"{name}=DIR must be a directory\n\n{__doc__}")
    if "serve" in parts and not Path(chosen["index"] or "-").is_dir():
        raise SystemExit(f"index=DIR must be a directory\n\n{__doc__}")
    rounds = int(chosen["rounds"])
    paths = []
    if parts != ("import",):
        paths = photographs(Path(chosen["root"]), int(chosen["images"]))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, OMP_NUM_THREADS {threads}")
    held = {}
    if "import" in parts:
        held["import"] = import_time(max(rounds, 5))
    if "first" in parts:
        held["first"] = first_embedding(chosen["bundle"], paths[0], rounds)
    if "embed" in parts:
        held["embed"] = embedding_rate(chosen["bundle"], paths, int(chosen["batch"]), rounds)
    if "serve" in parts:
        held["serve"] = serving(
            chosen["index"],
            chosen["bundle"],
            paths,
            int(chosen["clients"]),
            float(chosen["seconds"]),
        )
    missed = [name for name, fine in held.items() if not fine]
    print(f"targets missed: {', '.join(missed)}" if missed else "all targets held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
