"""The birds100 recipe as a plain loop around pytorch-metric-learning: the peer's column of the results.

    python benchmarks/peer_birds.py root=BIRDS weights=FILE [loss=circle,triplet] [seed=0,1,2] [out=FILE.csv]

root: the folder with labels.csv (path, label, split).  weights: for timm's mobilenetv2_035.
Everything a user of that library would write by hand is written by hand: torchvision's transforms, its
image loader, the library's sampler, miners and losses, torch's optimizer and schedule. The values (rates,
epochs, crop, size of a batch, parameters of the losses) are read from
configs/experiment/birds100_<loss>.yaml, so that both sides train by one recipe. Where the library's form of
a loss is another than ours, it is used as it is: Proxy-NCA with the positive in the denominator.
Embeddings are compared as our loss of that name demands and evaluated by `dml.evaluation.evaluate` on both
sides; the library's own Recall@1 stands beside it. One row per loss and seed is added to `out`;
rows that are there already are not run again.
"""

import csv
import fcntl
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_metric_learning import distances, losses, miners, regularizers, samplers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from safetensors.torch import load_file
from timm import create_model
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from dml import build, record
from dml.config import compose
from dml.evaluation import evaluate

OUT = Path(__file__).parents[1] / "experiments" / "peer" / "birds100.csv"
COLUMNS = (
    "loss",
    "seed",
    "recall@1",
    "map@r",
    "library_recall@1",
    "minutes",
    "steps",
    "commit",
    "dirty",
    "python",
    "torch",
    "torchvision",
    "timm",
    "pytorch-metric-learning",
    "date",
)
LOSSES = (
    "contrastive",
    "triplet",
    "lifted_structure",
    "n_pair",
    "proxy_nca",
    "multi_similarity",
    "circle",
    "smooth_ap",
    "arcface",
)


class Rows(Dataset):
    """The images of one split of labels.csv."""

    def __init__(self, root: Path, split: str, transform: Any):
        with (root / "labels.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        self.paths = [str(root / row["path"]) for row in rows]
        self.labels = [int(row["label"]) for row in rows]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(default_loader(self.paths[index])), self.labels[index]


class Embedder(nn.Module):
    """timm's trunk with its average pooling, and a linear layer. BatchNorm keeps its statistics."""

    def __init__(self, weights: str, dim: int, normalize: bool):
        super().__init__()
        self.trunk = create_model("mobilenetv2_035", num_classes=0, pad_type="same", bn_eps=1e-3)
        self.trunk.load_state_dict(load_file(weights))
        self.trunk.to(memory_format=torch.channels_last)
        self.head = nn.Linear(1280, dim)
        self.normalize = normalize

    def train(self, mode: bool = True) -> "Embedder":
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        vectors = self.head(self.trunk(images.to(memory_format=torch.channels_last)))
        return nn.functional.normalize(vectors) if self.normalize else vectors


def library_loss(name: str, options: dict[str, Any], classes: int, dim: int) -> tuple[Any, Any]:
    """The library's loss and miner with our experiment's parameters."""
    squared = distances.LpDistance(power=2)
    euclidean = distances.LpDistance(normalize_embeddings=False)
    if name == "contrastive":
        return losses.ContrastiveLoss(
            pos_margin=options["positive_margin"], neg_margin=options["negative_margin"]
        ), None
    if name == "triplet":
        loss = losses.TripletMarginLoss(margin=options["margin"], distance=squared)
        return loss, miners.TripletMarginMiner(options["margin"], "semihard", distance=squared)
    if name == "lifted_structure":
        return losses.LiftedStructureLoss(neg_margin=options["margin"], distance=euclidean), None
    if name == "n_pair":
        return losses.NPairsLoss(
            distance=distances.DotProductSimilarity(normalize_embeddings=False),
            embedding_regularizer=regularizers.LpRegularizer(p=2, power=2),
            embedding_reg_weight=options["l2_weight"],
        ), None
    if name == "proxy_nca":
        return losses.ProxyNCALoss(classes, dim, softmax_scale=options["scale"]), None
    if name == "multi_similarity":
        loss = losses.MultiSimilarityLoss(options["alpha"], options["beta"], options["base"])
        return loss, miners.MultiSimilarityMiner(options["epsilon"])
    if name == "circle":
        return losses.CircleLoss(m=options["margin"], gamma=options["scale"]), None
    if name == "smooth_ap":
        return losses.SmoothAPLoss(temperature=options["temperature"]), None
    if name == "arcface":
        degrees = options["margin"] * 180 / torch.pi
        return losses.ArcFaceLoss(classes, dim, margin=degrees, scale=options["scale"]), None
    raise SystemExit(f"loss={name} is none of {', '.join(LOSSES)}.")


def train(root: Path, weights: str, name: str, seed: int) -> dict[str, Any]:
    """One run; returns its row of the table."""
    composed, problems = compose.compose_all(
        [f"experiment=birds100_{name}", f"data.root={root}", f"backbone.weights={weights}"]
    )
    if problems:
        raise SystemExit("\n".join(f"{p.where} {p.what}" for p in problems))
    config = composed.config
    torch.manual_seed(seed)
    normalize = transforms.Normalize([0.5] * 3, [0.5] * 3)
    bicubic = transforms.InterpolationMode.BICUBIC
    size = config.backbone.image_size
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                size, config.augment.scale, config.augment.ratio, interpolation=bicubic
            ),
            transforms.RandomHorizontalFlip(config.augment.flip),
            transforms.ToTensor(),
            normalize,
        ]
    )
    plain = transforms.Compose(
        [
            transforms.Resize(config.backbone.resize, interpolation=bicubic),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            normalize,
        ]
    )
    rows = Rows(root, "train", augment)
    classes = len(set(rows.labels))
    options: dict[str, Any] = {"drop_last": True, "num_workers": config.loader.num_workers}
    options["persistent_workers"] = config.loader.num_workers > 0
    if "batch_size" in config.sampler:
        batches = DataLoader(rows, config.sampler.batch_size, shuffle=True, **options)
    else:
        per_class = config.sampler.images_per_class
        size_of_batch = min(16 if per_class > 2 else 32, classes) * per_class
        chosen = samplers.MPerClassSampler(rows.labels, per_class, size_of_batch, len(rows))
        batches = DataLoader(rows, size_of_batch, sampler=chosen, **options)
    schema = next(iter(build.loss_parts(config).values()))
    model = Embedder(weights, config.head.dim, schema.geometry == "cosine").train()
    loss, miner = library_loss(name, OmegaConf.to_container(config.loss), classes, config.head.dim)
    rates = config.optimizer
    groups = [
        {"params": model.trunk.parameters(), "lr": rates.lr},
        {"params": model.head.parameters(), "lr": rates.head_lr},
    ]
    if list(loss.parameters()):
        rate = rates.head_lr * config.loss.lr_scale
        groups.append({"params": loss.parameters(), "lr": rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, weight_decay=rates.weight_decay)
    epochs, warm = config.trainer.max_epochs, config.schedule.warmup_steps
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / (warm + 1)),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warm),
        ],
        [warm],
    )
    start = time.monotonic()
    for _ in range(epochs):
        for images, labels in batches:
            embeddings = model(images)
            chosen = None if miner is None else miner(embeddings, labels)
            value = loss(embeddings, labels, chosen)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    seconds = time.monotonic() - start
    model.eval()
    with torch.no_grad():
        tests = DataLoader(Rows(root, "test", plain), 128, num_workers=config.loader.num_workers)
        parts = [(model(images), labels) for images, labels in tests]
    embeddings, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    metrics = ("recall@1", "map@r")
    ours = evaluate(embeddings, labels, metrics=metrics, similarity=schema.geometry)
    library = AccuracyCalculator(("precision_at_1",), k=1, device=torch.device("cpu"))
    code = record.code_state()
    return {
        "loss": name,
        "seed": seed,
        **{metric: round(value, 6) for metric, value in ours.items()},
        "library_recall@1": round(library.get_accuracy(embeddings, labels)["precision_at_1"], 6),
        "minutes": round(seconds / 60, 2),
        "steps": steps,
        "commit": code["commit"],
        "dirty": code["dirty"],
        "python": platform.python_version(),
        **{package: version(package) for package in COLUMNS[10:14]},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read(out: Path) -> list[dict[str, str]]:
    """The rows that are there already."""
    if not out.exists():
        return []
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def add(out: Path, row: dict[str, Any]) -> None:
    """Add a row; several processes may fill the table together."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows: list[dict[str, Any]] = [*read(out), row]
        rows.sort(key=lambda row: (LOSSES.index(row["loss"]), int(row["seed"])))
        with record.aside(out) as file:
            lines = [",".join(COLUMNS)]
            lines += [",".join(str(row[column]) for column in COLUMNS) for row in rows]
            file.write(("\n".join(lines) + "\n").encode())


def main() -> None:
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    unknown = set(given) - {"root", "weights", "loss", "seed", "out"}
    if unknown or not {"root", "weights"} <= set(given):
        raise SystemExit(
            f"{', '.join(sorted(unknown))}: unknown\n{__doc__}" if unknown else __doc__
        )
    out = Path(given.get("out", OUT))
    for name in given.get("loss", ",".join(LOSSES)).split(","):
        for seed in map(int, given.get("seed", "0,1,2").split(",")):
            if any((row["loss"], row["seed"]) == (name, str(seed)) for row in read(out)):
                print(f"{name} seed {seed}: is in {out} already", flush=True)
                continue
            row = train(Path(given["root"]), given["weights"], name, seed)
            add(out, row)
            print(
                f"{name} seed {seed}: Recall@1 {row['recall@1']:.4f}, MAP@R {row['map@r']:.4f},"
                f" {row['minutes']} min",
                flush=True,
            )


if __name__ == "__main__":
    main()
