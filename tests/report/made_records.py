"""Records as runs would write them, made by hand: what the tests of evidence and tables are about."""

import copy
import functools
from pathlib import Path
from typing import Any

from dml import experiments, record

COMMIT = "175d9cdfbd7f997189fcffb23c9bcb2839a07d21"
BIRDS, KFOLD, ZERO = "birds100_circle", "reality_check_contrastive_cub200", "zero_deit_s_cub200"


@functools.cache
def config_of(name: str) -> dict[str, Any]:
    return experiments.experiment(name).config


def made(name: str = BIRDS, seed: int = 0, recall: float = 0.65, **changes: Any) -> dict[str, Any]:
    """A sealed record of a run; changes: dotted entry -> value, set before the seal."""
    config = copy.deepcopy(config_of(name))
    config["seed"], config["run_dir"] = seed, f"/tmp/runs/{name}_{seed}"
    config["data"] |= {"root": "/tmp/images", "num_train_classes": 50}
    config["backbone"] |= {"weights": "/home/me/trunk.safetensors", "pretrained": False}
    words = [f"experiment={name}", "data.root=/tmp/images", f"seed={seed}"]
    words.append("backbone.weights=/home/me/trunk.safetensors")
    of = dict.fromkeys(["recall@1", "recall@2", "recall@4", "recall@8"], recall)
    test = {**of, "map@r": recall / 2, "r_precision": recall / 2}
    content: dict[str, Any] = {
        "format": record.FORMAT,
        "command": "python train.py " + " ".join(words),
        "overrides": words,
        "choices": [{"group": "loss", "option": "circle", "chosen_by": f"experiment={name}"}],
        "config": config,
        "seed": seed,
        "code": {"commit": COMMIT, "dirty": False},
        "versions": {"torch": "2.15.0"},
        "hardware": {"device": "cpu", "cpu_cores": 2, "torch_threads": 2},
        "started": "2026-11-21T10:00:08+00:00",
        "seconds": {"total": 180.0, "training": 150.0},
        "peak_memory_bytes": 1,
        "data": {"name": "birds100", "fingerprint": "c0" * 32, "splits": {}, "unreadable": {}},
        "protocol": {"class_disjoint": True},
        "weights": {"file": "trunk.safetensors", "sha256": "ab" * 32},
        "checkpoint": {
            "rule": "last epoch",
            "epoch": 8,
            "step": 1,
            "file": "checkpoints/last.ckpt",
        },
        "metrics": {
            "frozen": dict.fromkeys(test, 0.6142),
            "untrained": dict.fromkeys(test, 0.54 + seed / 100),
            "val": None,
            "test": test,
        },
    }
    return sealed_with(content, changes)


def untrained(name: str = ZERO, recall: float = 0.7, **changes: Any) -> dict[str, Any]:
    """A sealed record of dml-eval experiment=..."""
    config = copy.deepcopy(config_of(name))
    config["data"]["root"] = "/tmp/images"
    content = {
        "format": record.FORMAT,
        "command": f"dml-eval experiment={name} data.root=/tmp/images",
        "code": {"commit": COMMIT, "dirty": False},
        "versions": {"torch": "2.15.0"},
        "backbone": config["backbone"],
        **{key: config[key] for key in ("experiment", "claim", "pins", "unpin")},
        "config": {key: config[key] for key in ("data", "backbone", "head", "evaluation")},
        "weights": None,
        "data": {"name": "cub200", "fingerprint": "c0" * 32, "splits": {}, "unreadable": {}},
        "split": "test",
        "options": {"data": config["data"], "evaluation": config["evaluation"]},
        "metrics": {
            "recall@1": recall,
            "recall@2": recall,
            "recall@4": recall,
            "map@r": recall / 2,
        },
    }
    return sealed_with(content, changes)


def of_folds(
    runs: dict[str, dict[str, Any]], recall: float = 0.6, **changes: Any
) -> dict[str, Any]:
    """A sealed record of dml-eval runs=[...]; runs: directory -> its record."""
    first = next(iter(runs.values()))
    content = {
        "format": record.FORMAT,
        "command": f"dml-eval runs=[{','.join(runs)}]",
        "code": {"commit": COMMIT, "dirty": False},
        "versions": {"torch": "2.15.0"},
        "runs": {name: content["metrics"]["test"] for name, content in runs.items()},
        "records": {name: content["sha256"] for name, content in runs.items()},
        "separated": {"recall@1": {"n": len(runs), "mean": recall}},
        "data": first["data"],
        "split": "test",
        "options": {key: first["config"][key] for key in ("data", "evaluation")},
        "metrics": {"recall@1": recall, "map@r": recall / 2, "r_precision": recall / 2},
    }
    return sealed_with(content, changes)


def sealed_with(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(content)
    for entry, value in changes.items():
        *path, last = entry.split(".")
        node: Any = content
        for part in path:
            node = node[part]
        node[last] = value
    return record.sealed(content)


def saved(content: dict[str, Any], path: Path) -> Path:
    """A run's directory, or a file where the name ends in .json."""
    file = path if path.suffix == ".json" else path / record.FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    record.write_json(content, file)
    return path
