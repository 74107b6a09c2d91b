"""Time of our training step against a hand-written loop over the same model, in one run.

    python benchmarks/overhead.py [steps=60] [block=1] [backbone=...] [size=...] [batch=...]
                                  [precision=...] [loop_precision=...] [compile=true]
                                  [images=DIR] [workers=2] [device=cuda]

On a CPU: mobilenetv2_035, 64 images of 128 x 128 in float32. On a GPU: ResNet-50, 128 images of 224 x 224
in bf16-mixed. The batches lie on the device already. Ours is DmlModule under Lightning's Trainer with the
logger and callbacks of a run. After every `block` of its steps the plain loop does as many of its own, from
the same weights and with the same batches; with compile=true or a loop_precision of its own the loop is the
plain side of that comparison. The ratio is that of the two sums, and its spread is over tenths of the run;
the median is of the ratios of a block to the one that followed it, with the interval that holds it at 95 %.
Processor time beside wall time: on a busy machine the first is the fairer, and the median before the ratio.
Without a GPU it says so; with device=cuda it then ends.

Then the parts of a step one by one, each waited for, and images per second; with images=DIR (a folder of one
folder per class) also those with the loader reading files in `workers` processes.
"""

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from dml import run
from dml.callbacks import EpochLines, StopOnSignal
from dml.data.images import BadImages, Batch
from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.losses import MultiSimilarity
from dml.module import DmlModule
from dml.optim import cosine, parameter_groups

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DEFAULTS = {
    "steps": "400" if GPU else "60",
    "block": "20" if GPU else "1",
    "backbone": "resnet50" if GPU else "mobilenetv2_035",
    "size": "224" if GPU else "128",
    "batch": "128" if GPU else "64",
    "precision": "bf16-mixed" if GPU else "32-true",
    "loop_precision": "",  # that of ours
    "compile": "false",
    "images": "",
    "workers": "2",
    "device": "cuda" if GPU else "cpu",
}
WARM = 2  # blocks not counted
FEWEST = 6  # pairs, below which no interval holds a median at 95 %


def now() -> np.ndarray:
    """Wall and processor seconds, all work on the device done."""
    if GPU:
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def make_encoder(name: str) -> Encoder:
    """Trunk with frozen statistics and a head of 128."""
    torch.manual_seed(0)
    trunk = Trunk(name, freeze_bn=True)
    return Encoder(trunk, Head(pooled_features(trunk, "avg"), 128))


def make_optimizer(encoder: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the groups of a run."""
    rates = {"lr": 1e-4, "head_lr": 1e-3, "weight_decay": 1e-4}
    return torch.optim.AdamW(parameter_groups(encoder, loss, **rates))  # type: ignore[arg-type]


class Repeated:
    """The same batches again and again, `steps` in all."""

    def __init__(self, batches: list[Batch], steps: int):
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return (self.batches[step % len(self.batches)] for step in range(self.steps))


class PlainLoop:
    """The hand-written loop, one step at a time."""

    def __init__(self, encoder: Encoder, batches: list[Batch], precision: str):
        self.encoder, self.loss = encoder.to(DEVICE).train(), MultiSimilarity()
        self.optimizer = make_optimizer(self.encoder, self.loss)
        self.batches, self.number = batches, 0
        self.autocast = torch.autocast(
            DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False
        )

    def step(self) -> None:
        batch = self.batches[self.number % len(self.batches)]
        self.number += 1
        with self.autocast:
            loss = self.loss(self.encoder(batch.images), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def parts(self, steps: int) -> dict[str, float]:
        """Wall seconds of each part of a step, each waited for; medians."""
        found: dict[str, list[float]] = {}
        for number in range(steps):
            batch, state = self.batches[number % len(self.batches)], {}

            def forward(batch: Batch = batch, state: dict[str, Any] = state) -> None:
                with self.autocast:
                    state["embeddings"] = self.encoder(batch.images)

            def compare(batch: Batch = batch, state: dict[str, Any] = state) -> None:
                state["loss"] = self.loss(state["embeddings"], batch.labels)

            def backward(state: dict[str, Any] = state) -> None:
                self.optimizer.zero_grad()
                state["loss"].backward()

            done: dict[str, Callable[[], Any]] = {
                "forward": forward,
                "loss": compare,
                "backward": backward,
                "optimizer": self.optimizer.step,
            }
            for name, part in done.items():
                begun = now()
                part()
                found.setdefault(name, []).append((now() - begun)[0])
        return {name: float(np.median(seconds[1:])) for name, seconds in found.items()}


class TakeTurns(pl.Callback):
    """After each block of our steps, as many of the plain loop, which are not on our clock."""

    def __init__(self, plain: PlainLoop | None, block: int):
        self.plain, self.block = plain, block
        self.ours: list[np.ndarray] = []
        self.theirs: list[np.ndarray] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.block:
            return
        end = now()
        if hasattr(self, "begun"):
            self.ours.append(end - self.begun)
        if self.plain is not None:
            for _ in range(self.block):
                self.plain.step()
            self.theirs.append(now() - end)
        self.begun = now()


def train(
    module: DmlModule, loader: Any, turns: TakeTurns, steps: int, precision: str, folder: Path
) -> None:
    """Through Lightning, as a run does it."""
    stop = StopOnSignal(folder / "last.ckpt")
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="gpu" if GPU else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[turns, stop, EpochLines()],
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        deterministic="warn" if GPU else True,
    )
    with stop.listening():
        trainer.fit(module, loader)


def make_module(encoder: Encoder, compiled: bool = False) -> DmlModule:
    """Ours."""
    return DmlModule(
        encoder,
        MultiSimilarity(),
        None,
        optimizer=lambda module: make_optimizer(module.encoder, module.loss),
        schedule=lambda total: cosine(total, warmup_steps=0, final=0.0),
        evaluation={},
        bad_images=BadImages("error"),
        seed=0,
        compiled=compiled,
    )


def with_loader(options: dict[str, str], folder: Path) -> float:
    """Images per second of a run that decodes and augments files."""
    from dml import build, cli
    from dml.data.loaders import train_loader

    words = [
        *("data=folder", f"data.root={options['images']}", "data.val_fraction=0"),
        *("backbone=timm", f"backbone.name={options['backbone']}", "backbone.pretrained=false"),
        *(f"backbone.image_size={options['size']}", "loss=proxy_nca"),
        *(f"sampler.batch_size={options['batch']}", f"loader.num_workers={options['workers']}"),
    ]
    composed, index = cli.checked(words)
    config, images = composed.config, index.part("train")
    transform = build.train_transform(config, build.encoder(config))
    sampler, workers = build.sampler(config, images), config.loader.num_workers
    loader = train_loader(images, sampler, transform, config.seed, workers)
    turns, steps = TakeTurns(None, 1), int(options["steps"]) + WARM + 1
    train(
        make_module(make_encoder(options["backbone"])),
        *(loader, turns, steps, options["precision"], folder),
    )
    # The mean: a step that waits for the loader counts as much as those that find their batch ready.
    return sampler.batch_size / float(np.mean(turns.ours[WARM:], axis=0)[0])


def main() -> None:
    options = DEFAULTS | dict(word.split("=", 1) for word in sys.argv[1:])
    if options.keys() - DEFAULTS.keys():
        raise SystemExit(__doc__)
    if options["device"] != DEVICE.type:
        raise SystemExit(f"device={options['device']}: PyTorch finds {DEVICE.type} alone here.")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    run.quieten_libraries()
    warnings.filterwarnings("ignore", message=".*Total length of.*")
    if GPU:
        print(torch.cuda.get_device_name())
    else:
        print(f"no GPU; {torch.get_num_threads()} CPU threads")
        run.keep_freed_memory()
    size, count, block = (int(options[key]) for key in ("size", "batch", "block"))
    shape, labels = (count, 3, size, size), torch.arange(count, device=DEVICE) // 4
    batches = [
        Batch(torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE), labels, labels, [])
        for _ in range(4)
    ]
    encoder = make_encoder(options["backbone"])
    plain_precision = options["loop_precision"] or options["precision"]
    plain = PlainLoop(deepcopy(encoder), batches, plain_precision)
    compiled = options["compile"] == "true"
    turns = TakeTurns(plain, block)
    with tempfile.TemporaryDirectory() as folder:
        steps = int(options["steps"]) + (WARM + 1) * block
        module, loader = make_module(encoder, compiled), Repeated(batches, steps)
        train(module, loader, turns, steps, options["precision"], Path(folder))
        report(options, turns, block)
        parts = plain.parts(10)
        whole = sum(parts.values())
        print("parts of a step: " + ", ".join(f"{n} {s / whole:.0%}" for n, s in parts.items()))
        if options["images"]:
            rate = with_loader(options, Path(folder) / "loader")
            print(f"with the loader ({options['workers']} workers): {rate:.1f} images/s")


def report(options: dict[str, str], turns: TakeTurns, block: int) -> None:
    """Both sides, their ratio, its spread."""
    ours, theirs = np.array(turns.ours[WARM:]), np.array(turns.theirs[WARM:-1])
    count = min(len(ours), len(theirs))
    ours, theirs = ours[:count], theirs[:count]
    name = f"{options['backbone']}, {options['batch']} images of {options['size']}"
    ways = f"{options['precision']}, loop {options['loop_precision'] or options['precision']}"
    ways += ", ours compiled" if options["compile"] == "true" else ""
    print(f"{name}, {ways}, {count * block} steps of each side in turns")
    print(
        "           ours ms  loop ms  ratio  over tenths     median  95 %            images/s ours"
    )
    for column, kind in enumerate(("wall", "processor")):
        a, b = ours[:, column], theirs[:, column]
        tenths = [
            x.sum() / y.sum()
            for x, y in zip(np.array_split(a, 10), np.array_split(b, 10), strict=True)
            if len(x)
        ]
        low, high = interval(a / b)
        print(
            f"{kind:9}  {1000 * a.mean() / block:7.1f}  {1000 * b.mean() / block:7.1f}"
            f"  {a.sum() / b.sum():5.3f}  {min(tenths):.3f} to {max(tenths):.3f}"
            f"  {np.median(a / b):6.3f}  {low:.3f} to {high:.3f}"
            f"  {int(options['batch']) * block / a.mean():13.1f}"
        )


def interval(values: np.ndarray) -> tuple[float, float]:
    """Order statistics that hold the median at 95 %: the binomial's normal approximation."""
    ordered, count = np.sort(values), len(values)
    if count < FEWEST:
        return float("nan"), float("nan")
    below = max(0, int(np.floor(count / 2 - 0.98 * np.sqrt(count))))
    return float(ordered[below]), float(ordered[count - 1 - below])


if __name__ == "__main__":
    main()
