"""Peak memory and time of a training step against trainer.batch_chunks.

    python benchmarks/memory.py [chunks=1,2,4,8,16] [batch=512] [size=128] [backbone=mobilenetv2_035]
                                [device=cuda]

One step of Smooth-AP over the whole batch, forward, backward and AdamW, with BatchNorm frozen. Each number
of chunks is measured in a process of its own: its largest resident memory, less what was resident before
the step, on a CPU (Linux); the largest allocation where there is a GPU, which device=cuda insists on. Seconds
are of the second step.
"""

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dml.record import peak_resident

DEFAULTS = {
    **{"chunks": "1,2,4,8,16", "batch": "512", "size": "128", "backbone": "mobilenetv2_035"},
    "device": "",  # cuda where there is one
}
MIB = 2**20


def measure(chunks: int, batch: int, size: int, backbone: str, wanted: str) -> dict[str, Any]:
    """One process's figures: bytes before the step and at its peak, wall and processor seconds."""
    import torch

    from dml.chunks import in_chunks
    from dml.encoder import Encoder, Head, Trunk, pooled_features
    from dml.losses import SmoothAP

    device = torch.device("cuda" if torch.cuda.is_available() and wanted != "cpu" else "cpu")
    if wanted not in ("", device.type):
        raise SystemExit(f"device={wanted}: PyTorch finds {device.type} alone here.")
    torch.manual_seed(0)
    trunk = Trunk(backbone, freeze_bn=True)
    encoder = Encoder(trunk, Head(pooled_features(trunk, "avg"), 128)).to(device).train()
    optimizer, loss = torch.optim.AdamW(encoder.parameters()), SmoothAP()

    def step(images: torch.Tensor, labels: torch.Tensor, parts: int) -> None:
        value = loss(encoder.scale(in_chunks(encoder.vectors, images, parts)), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) // 4
    step(images[:8], labels[:8], 1)  # libraries, gradients and the optimizer's state
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far, proc(5)
        before = resident()
    step(images, labels, chunks)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident()
    wall, cpu = time.perf_counter(), time.process_time()
    step(images, labels, chunks)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "before": before,
        "peak": peak,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }


def resident() -> int:
    """Resident memory of this process now, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    options = DEFAULTS | dict(word.split("=", 1) for word in sys.argv[1:])
    if options.keys() - DEFAULTS.keys() - {"one"}:
        raise SystemExit(__doc__)
    size = int(options["batch"]), int(options["size"]), options["backbone"]
    if "one" in options:
        print(json.dumps(measure(int(options["one"]), *size, options["device"])))
        return
    first = None
    for chunks in options["chunks"].split(","):
        command = [sys.executable, __file__, *sys.argv[1:], f"one={chunks}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        found["step"] = found["peak"] - found["before"]
        if first is None:
            first = found
            images = f"{size[0]} images of {size[1]} x {size[1]}"
            print(f"{found['device']}: {size[2]}, {images}, Smooth-AP over all of them")
            print("chunks  peak MiB  of the step  ratio  wall s  cpu s  ratio")
        print(
            f"{chunks:>6}  {found['peak'] / MIB:8.0f}  {found['step'] / MIB:11.0f}"
            f"  {found['step'] / first['step']:5.3f}  {found['wall']:6.1f}  {found['cpu']:5.1f}"
            f"  {found['cpu'] / first['cpu']:5.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
