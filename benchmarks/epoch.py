"""Time of a training epoch: ours against a plain loop around pytorch-metric-learning, in one run.

    python benchmarks/epoch.py root=BIRDS weights=FILE [epochs=2] [workers=2]

root: a folder with labels.csv (path, label, split).  weights: for timm's mobilenetv2_035.
Both sides see the same images through the same transforms: RandomResizedCrop(128, 0.2-1) and flip,
batches of 16 classes x 4, multi-similarity loss, AdamW 1e-4 / 1e-3, frozen BatchNorm statistics. They
take turns, epoch by epoch within each side's own training, and the seconds are those of training alone.
Prints both, their ratio and the Recall@1 and MAP@R that each reached on the test classes.
"""

import csv
import sys
import tempfile
import time
from pathlib import Path

import torch
from pytorch_metric_learning import losses, miners, samplers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from timm import create_model
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from dml import cli, run

P, K, DIM = 16, 4, 128


class Rows(Dataset):
    """Rows of the labels file of one split, as torchvision users would write it."""

    def __init__(self, root: Path, split: str, transform):
        with (root / "labels.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        self.paths = [str(root / row["path"]) for row in rows]
        self.labels = [int(row["label"]) for row in rows]
        self.transform = transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(default_loader(self.paths[index])), self.labels[index]


class Embedder(nn.Module):
    """The same trunk and head, written plainly."""

    def __init__(self, weights: str):
        super().__init__()
        from safetensors.torch import load_file

        self.trunk = create_model("mobilenetv2_035", num_classes=0, pad_type="same", bn_eps=1e-3)
        self.trunk.load_state_dict(load_file(weights))
        self.head = nn.Linear(1280, DIM)

    def train(self, mode=True):
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images):
        return nn.functional.normalize(self.head(self.trunk(images)))


def peer(root: Path, weights: str, epochs: int, workers: int) -> dict[str, float]:
    """A plain loop around pytorch-metric-learning."""
    torch.manual_seed(0)
    normalize = transforms.Normalize([0.5] * 3, [0.5] * 3)
    bicubic = transforms.InterpolationMode.BICUBIC
    train = transforms.Compose(
        [
            transforms.RandomResizedCrop(128, (0.2, 1), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            normalize,
        ]
    )
    test = transforms.Compose(
        [
            transforms.Resize(144, interpolation=bicubic),
            transforms.CenterCrop(128),
            transforms.ToTensor(),
            normalize,
        ]
    )
    rows = Rows(root, "train", train)
    sampler = samplers.MPerClassSampler(rows.labels, K, P * K, len(rows))
    batches = DataLoader(
        rows,
        P * K,
        sampler=sampler,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    model = Embedder(weights).train()
    loss_function = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    miner = miners.MultiSimilarityMiner(epsilon=0.1)
    optimizer = torch.optim.AdamW(
        [
            {"params": model.trunk.parameters(), "lr": 1e-4},
            {"params": model.head.parameters(), "lr": 1e-3},
        ],
        weight_decay=1e-4,
    )
    start = time.monotonic()
    for _ in range(epochs):
        for images, labels in batches:
            embeddings = model(images)
            loss = loss_function(embeddings, labels, miner(embeddings, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = (time.monotonic() - start) / epochs
    model.eval()
    with torch.no_grad():
        batches = DataLoader(Rows(root, "test", test), 128, num_workers=workers)
        parts = [(model(images), labels) for images, labels in batches]
    embeddings, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    names = ("precision_at_1", "mean_average_precision_at_r")
    scores = AccuracyCalculator(names, k="max_bin_count", device=torch.device("cpu"))
    recall, map_r = (scores.get_accuracy(embeddings, labels)[name] for name in names)
    steps = len(sampler) // (P * K)
    return {"seconds": seconds, "steps": steps, "recall@1": recall, "map@r": map_r}


def ours(root: Path, weights: str, epochs: int, workers: int) -> dict[str, float]:
    """The same through the framework."""
    with tempfile.TemporaryDirectory() as folder:
        composed, index = cli.checked(
            [
                "data=csv",
                f"data.root={root}",
                "data.labels=labels.csv",
                "data.val_fraction=0",
                "loss=multi_similarity",
                "backbone=mobilenetv2_035",
                f"backbone.weights={weights}",
                "augment.scale=[0.2,1.0]",
                "schedule=constant",
                f"trainer.max_epochs={epochs}",
                f"loader.num_workers={workers}",
                f"run_dir={folder}/run",
            ]
        )
        record = run.train(composed, index)
    return {
        "seconds": record["seconds"]["training"] / epochs,
        "steps": record["checkpoint"]["step"] / epochs,
        "recall@1": record["metrics"]["test"]["recall@1"],
        "map@r": record["metrics"]["test"]["map@r"],
    }


def main() -> None:
    options = {"epochs": "2", "workers": "2"} | dict(word.split("=", 1) for word in sys.argv[1:])
    if "root" not in options or "weights" not in options:
        raise SystemExit(__doc__)
    cli.set_up_log()
    root, epochs, workers = Path(options["root"]), int(options["epochs"]), int(options["workers"])
    sides = {
        "pytorch-metric-learning loop": peer(root, options["weights"], epochs, workers),
        "dml": ours(root, options["weights"], epochs, workers),
    }
    print(
        f"{'':30}  s/epoch  steps  ms/step  recall@1   map@r   ({epochs} epochs, {workers} workers)"
    )
    for name, side in sides.items():
        step = 1000 * side["seconds"] / side["steps"]
        print(
            f"{name:30}  {side['seconds']:7.2f}  {side['steps']:5.0f}  {step:7.1f}"
            f"  {side['recall@1']:8.4f}  {side['map@r']:6.4f}"
        )
    before, after = sides.values()
    ratio = after["seconds"] / before["seconds"]
    print(f"ratio of epoch times, dml / loop: {ratio:.3f}")


if __name__ == "__main__":
    main()
