"""What the loss tests run over: every file of configs/loss whose class is our own, and drawn
batches.

A new loss is found by its YAML; its slow twin is tests/reference/<name>.py with

    VARIANTS = [hyperparameters, ...]           # at least the shipped values' form
    def loss(embeddings, labels, **hyperparameters, **parameters): ...    # float64, loops, autograd
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from hydra.core.config_store import ConfigStore
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from dml.config import losses as schemas

ROOT = Path(__file__).parents[2]
NUM_CLASSES = 6
NOT_CONSTRUCTOR = {"_target_", "lr_scale", "weight_decay"}
schemas.register(ConfigStore.instance())


@dataclass(frozen=True)
class LossFile:
    """One file of configs/loss: its text as written, its schema, and the class it names."""

    name: str
    yaml: DictConfig
    schema: type

    @property
    def target(self) -> type:
        return get_class(self.yaml._target_)

    @property
    def parametric(self) -> bool:
        """Whether it has parameters per class, hence a range of labels."""
        return bool({"num_classes", "classifier"} & self.schema.__dataclass_fields__.keys())

    @property
    def by_direction(self) -> bool:
        """Whether only the direction of an embedding counts, not its length."""
        return self.schema.geometry == "cosine" and not self.schema.keeps_length

    @property
    def reference(self) -> ModuleType:
        return load_reference(self.name)

    def shipped(self) -> dict:
        """Constructor arguments as a run gets them, interpolations unresolved."""
        yaml = self.yaml.copy()
        del yaml["defaults"]
        values = OmegaConf.merge(OmegaConf.structured(self.schema), yaml)  # 80 becomes 80.0
        values = OmegaConf.to_container(values, resolve=False)
        return {k: v for k, v in values.items() if k not in NOT_CONSTRUCTOR}

    def make(
        self,
        dim: int = 4,
        num_classes: int = NUM_CLASSES,
        target: type | None = None,
        **hyperparameters,
    ):
        """The loss (or `target`, a changed one) with its shipped values, or those given.

        Proxies are drawn from seed 0.
        """
        shipped = self.shipped()
        sizes = {"num_classes": num_classes, "embedding_dim": dim}
        inner = shipped.get("classifier", {})
        for values in (shipped, inner):
            values |= {key: value for key, value in sizes.items() if key in values}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if inner:
                shipped["classifier"] = instantiate(inner)
            return (target or self.target)(**shipped | hyperparameters)


def reference_path(name: str) -> Path:
    return ROOT / "tests" / "reference" / f"{name}.py"


@cache
def load_reference(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reference_{name}", reference_path(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def loss_files() -> tuple[LossFile, ...]:
    store = ConfigStore.instance().repo["schema"]["loss"]
    files = []
    for path in sorted((ROOT / "configs" / "loss").glob("*.yaml")):
        # A file without a schema fails tests/config/test_loss_files.py, not the collection here.
        schema = OmegaConf.get_type(store[path.name].node) if path.name in store else None
        # A sum has no formula of its own; test_sum.py is about it, test_pml.py about foreign losses.
        if schema is not None and schema.verified and schema is not schemas.Sum:
            files.append(LossFile(path.stem, OmegaConf.load(path), schema))
    return tuple(files)


def pair_losses() -> tuple[LossFile, ...]:
    """Those that compare embeddings with embeddings."""
    return tuple(file for file in loss_files() if file.schema.compares != "proxies")


def tuple_losses() -> tuple[LossFile, ...]:
    """Those that take a miner's choice."""
    return tuple(file for file in loss_files() if file.schema.miners)


def variants() -> list[tuple[LossFile, dict]]:
    """Every (loss, hyperparameters) of the references."""
    files = [file for file in loss_files() if reference_path(file.name).is_file()]
    return [(file, values) for file in files for values in file.reference.VARIANTS]


def variant_id(value) -> str:
    if isinstance(value, LossFile):
        return value.name
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def drawn_batches(dim: int = 4) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(kind, float64 embeddings, labels): the shapes of batch that break losses."""
    draw = torch.Generator().manual_seed(20)

    def normal(n: int) -> torch.Tensor:
        return torch.randn(n, dim, generator=draw, dtype=torch.float64)

    batches = []
    for i, labels in enumerate(
        [
            [0, 0, 1, 1, 2, 2, 3, 3],  # balanced
            [0, 1, 2, 0, 1, 2, 0, 1, 2],  # balanced, not in order
            [0, 0, 0, 1, 1, 2, 2, 3],  # unequal, with a singleton
            [5, 3, 3, 5, 5, 1, 3, 0, 5],  # unequal, scattered, labels with gaps
            [0, 0, 0, 0, 0, 1],
            [1, 0, 0],
        ]
    ):
        batches.append((f"counts{i}", normal(len(labels)), labels))
    mixed = [0, 0, 0, 1, 1, 2, 2, 3]
    for i in range(4):  # clustered: positives near, so that hinges are partly inactive
        centres = normal(6)
        noise = (0.1, 0.3, 0.6, 1.0)[i]
        batches.append((f"clustered{i}", centres[mixed] + noise * normal(8), mixed))
    near = normal(1) + 0.05 * normal(8)
    batches.append(("all_near", near, mixed))
    opposite = normal(1) * torch.tensor([1.0, -1] * 4, dtype=torch.float64)[:, None]
    batches.append(("positives_opposite", opposite + 0.2 * normal(8), [0, 0, 1, 1, 2, 2, 3, 3]))
    axes = torch.cat([torch.eye(dim, dtype=torch.float64), -torch.eye(dim, dtype=torch.float64)])
    batches.append(("negative_similarities", axes + 0.05 * normal(2 * dim), [0, 1] * dim))
    duplicates = normal(8)
    duplicates[1] = duplicates[0]  # of the same class
    batches.append(("duplicate_positives", duplicates, mixed))
    duplicates = duplicates.clone()
    duplicates[5], duplicates[7] = duplicates[0], duplicates[0]  # and across classes
    batches.append(("duplicates_across", duplicates, mixed))
    scaled = normal(8) * torch.logspace(-2, 1, 8, dtype=torch.float64)[:, None]
    batches.append(("lengths_differ", scaled, mixed))
    batches.append(("one_class", normal(5), [2] * 5))
    batches.append(("no_pair", normal(5), [0, 1, 2, 3, 4]))
    batches.append(("one_row", normal(1), [3]))
    batches.append(("two_rows", normal(2), [3, 3]))
    for i in range(4):
        n = 4 + 2 * i
        labels = torch.randint(0, NUM_CLASSES, (n,), generator=draw).tolist()
        batches.append((f"random{i}", normal(n), labels))
    return [(kind, x, torch.tensor(labels)) for kind, x, labels in batches]


def value_and_gradients(function, x: torch.Tensor, parameters=()) -> tuple[torch.Tensor, list]:
    """The value of `function(x)` and its gradients for x and the parameters."""
    x = x.detach().clone().requires_grad_()
    value = function(x)
    return value.detach(), list(torch.autograd.grad(value, [x, *parameters], allow_unused=False))


def compare_with_reference(loss, reference, x, labels, hyperparameters) -> str:
    """Empty if value (1e-6) and gradients (1e-5, relative) agree, else what differs."""
    loss = loss.double()
    parameters = dict(loss.named_parameters())
    value, gradients = value_and_gradients(lambda x: loss(x, labels), x, parameters.values())
    copies = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    expected, expected_gradients = value_and_gradients(
        lambda x: reference(x, labels.tolist(), **hyperparameters, **copies), x, copies.values()
    )
    if not (value - expected).abs() <= 1e-6 * expected.abs() + 1e-12:
        return f"value {value.item():.9g}, reference {expected.item():.9g}"
    for name, ours, theirs in zip(
        ["embeddings", *parameters], gradients, expected_gradients, strict=True
    ):
        error = (ours - theirs).abs().max()
        if not error <= 1e-5 * theirs.abs().max() + 1e-9:
            return (
                f"gradient of {name} off by {error.item():.3g} of {theirs.abs().max().item():.3g}"
            )
    return ""
