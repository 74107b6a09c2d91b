"""A finished run of seconds on drawn images whose class names try to break a page."""

import csv
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from dml import cli, record, run
from dml.report import embedding_map, page

NAMES = ['<b>bold</b> & "quoted"', "</script><script>alert(1)</script>", "naïve ✓", "{{ 7 * 7 }}"]
CLASSES, OF_CLASS = 12, 10  # four classes each for training, validation and test


def images(folder: Path) -> Path:
    """Write the images and their labels.csv: a class is a colour, its images differ in noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for label in range(CLASSES):
        colour = rng.integers(0, 256, 3)
        split = ("train", "val", "test")[label // 4]
        name = NAMES[label - 8] if split == "test" else f"{split} {label}"
        for number in range(OF_CLASS):
            pixels = (colour + rng.normal(0, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            path = f"{label}_{number}.png"
            Image.fromarray(pixels).save(folder / path)
            rows.append({"path": path, "label": label, "class_name": name, "split": split})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def train(root: Path, directory: Path, *more: str) -> Path:
    """Train for two epochs of three batches."""
    words = [
        "data=csv",
        f"data.root={root}",
        "data.labels=labels.csv",
        f"run_dir={directory}",
        "loss=circle",
        "backbone=glyphs_cnn",
        "backbone.kwargs.channels=[8,8,8,8]",
        "backbone.image_size=32",
        "backbone.resize=32",
        "head.dim=16",
        "sampler.classes_per_batch=4",
        "sampler.images_per_class=4",
        "sampler.batches_per_epoch=3",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "loader.num_workers=0",
        *more,
    ]
    run.train(*cli.checked(words))
    return directory


def without_umap(patch) -> None:
    """UMAP takes half a minute to be imported and compiled; a slow test has it."""
    patch.setattr(embedding_map, "umap_installed", lambda: False)


def copied(directory: Path, to: Path) -> Path:
    """A run's directory once more, to be changed."""
    return Path(shutil.copytree(directory, to))


def rewritten(directory: Path, change) -> None:
    """Change a run's record and seal it again."""
    content = record.read(directory)
    change(content)
    record.write(content, directory)


def written(directory: Path, out: Path | None = None, **more) -> str:
    """The page of a run as text."""
    return page.write(directory, out, **more).read_text(encoding="utf-8")
