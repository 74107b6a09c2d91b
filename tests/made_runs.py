"""A finished run without training: a network as it was drawn, its checkpoint and its record.

What is tested with it is how files are read; a second makes one, where training takes ten.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dml import build, cli, measure, record, run
from dml.data.images import BadImages

CLASSES, OF_CLASS = 9, 4


def images(folder: Path) -> Path:
    """Images of a colour a class and their labels.csv: three classes for each split."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for label in range(CLASSES):
        colour, split = rng.integers(0, 256, 3), ("train", "val", "test")[label // 3]
        for number in range(OF_CLASS):
            pixels = (colour + rng.normal(0, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}_{number}.png")
            rows.append([f"{label}_{number}.png", label, split])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    return folder


def words(root: Path, directory: Path | None = None) -> list[str]:
    """The command line of a run of seconds."""
    return [
        *("data=csv", f"data.root={root}", "data.labels=labels.csv"),
        *("backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false"),
        *("backbone.image_size=32", "backbone.resize=32", "head.dim=8", "loss=contrastive"),
        *("sampler.classes_per_batch=3", "sampler.images_per_class=2"),
        *("sampler.batches_per_epoch=2", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
        *("loader.num_workers=0", "evaluation.metrics=[recall@1,map@r]"),
        *([] if directory is None else [f"run_dir={directory}"]),
    ]


def finished(directory: Path, root: Path) -> Path:
    """Write a finished run on the images of `root` into `directory`."""
    typed = words(root, directory)
    composed, index = cli.checked(typed)
    config = composed.config
    torch.manual_seed(0)
    encoder = build.encoder(config).eval()
    (directory / "checkpoints").mkdir(parents=True)
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    torch.save(
        {"state_dict": state, "global_step": 2, "epoch": 0, "loops": {}},
        directory / "checkpoints/last.ckpt",
    )
    cpu, bad = torch.device("cpu"), BadImages("error")
    found = measure.embed_split(
        config, index, "test", {"test": encoder}, encoder.preprocess, cpu, bad
    )
    metrics = measure.measure(found["test"], config).metrics
    content = {
        "format": record.FORMAT,
        "command": "dml-train",
        "overrides": typed,
        "choices": [vars(choice) for choice in composed.choices],
        "config": build.plain(config),
        "seed": config.seed,
        "code": {"commit": None, "dirty": None},
        "versions": record.versions(),
        "hardware": {"device": "cpu", "cpu_cores": 1, "torch_threads": 1},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": {"total": 1.0, "training": 1.0},
        "peak_memory_bytes": 1,
        "data": measure.describe_data(index, bad),
        "protocol": {
            "name": "standard",
            "fold": None,
            "class_disjoint": True,
            "queries": run.ALL_AGAINST_ALL,
            "similarity": "cosine",
            "normalized": True,
            "preprocess": encoder.preprocess.as_dict(),
        },
        "weights": None,
        "checkpoint": {
            "rule": "last epoch",
            "epoch": 1,
            "step": 2,
            "file": "checkpoints/last.ckpt",
        },
        "metrics": {"frozen": metrics, "untrained": metrics, "val": None, "test": metrics},
    }
    record.write(content, directory)
    return directory


def resealed(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a run's record and seal it again, as anyone can who writes to it."""
    content = record.read_json(directory / record.FILE)
    change(content)
    record.write_json(record.sealed(content), directory / record.FILE)
