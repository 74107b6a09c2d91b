"""Types and ranges of the configuration groups whose schemas have no file of their own.

A value lives in the YAML, beside its source; here are its type, its range and what it does.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore

from dml.config import data, extras, launch, losses, post
from dml.config.ranges import MISSING, Checked, choice, count, number, positive
from dml.errors import Problem


@dataclass
class Backbone(Checked):
    """A timm model without its classifier."""

    _target_: str = MISSING
    name: str = MISSING  # any name that timm.create_model knows
    pretrained: bool = MISSING  # timm's weights for that name; needs the network once
    weights: str | None = None  # a file instead: safetensors or a plain state dict, loaded strictly
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model
    # How images reach the trunk. null keeps what timm records for the weights.
    image_size: int | None = count(8)
    resize: int | None = count(
        8
    )  # shorter side before the centre crop; null: image_size / crop_pct
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = choice("bilinear", "bicubic", "nearest", "lanczos")
    freeze_bn: bool = MISSING  # keep BatchNorm statistics as loaded (pitfall D3)
    freeze_epochs: int = count(0)  # train the head alone for this many epochs
    channels_last: bool = MISSING  # memory layout of convolutions; decides speed, not results

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and what contradicts itself within the group."""
        found = super().problems(prefix)
        if self.pretrained and self.weights:
            found.append(
                Problem(
                    f"{prefix}.weights={self.weights}",
                    f"and {prefix}.pretrained=true name two sets of weights. "
                    f"Add {prefix}.pretrained=false.",
                )
            )
        if self.weights and not Path(self.weights).expanduser().is_file():
            found.append(Problem(f"{prefix}.weights={self.weights}", "is no file."))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, 3):
                found.append(Problem(f"{prefix}.{name}={values}", "takes one number or three."))
        if self.std is not None and any(value <= 0 for value in self.std):
            found.append(Problem(f"{prefix}.std={self.std}", "must be above 0."))
        if self.image_size and self.resize and self.resize < self.image_size:
            found.append(
                Problem(
                    f"{prefix}.resize={self.resize}",
                    f"is below {prefix}.image_size={self.image_size}, which is cropped from it.",
                )
            )
        return found


@dataclass
class NoHead(Checked):
    """Pooling alone, for encoders that are evaluated as they come."""

    _target_: str = MISSING
    pooling: str = choice("avg", "max", "avg_max", "gem", "native")

    embeds: ClassVar[bool] = False  # whether there is an embedding layer, which training needs


@dataclass
class Head(NoHead):
    """Pooling, then a linear embedding layer."""

    dim: int = count(1)
    layer_norm: bool = MISSING

    embeds: ClassVar[bool] = True


@dataclass
class Augment(Checked):
    """Training images: a random crop, a flip, a warp, a change of colours, an erased part."""

    _target_: str = MISSING
    resize: int | None = count(8)  # shorter side of the whole image before the crop; null: as it is
    scale: list[float] = field(default_factory=list)  # share of the area that a crop keeps
    ratio: list[float] = field(default_factory=list)  # width / height of a crop
    flip: float = number(0, 1)
    degrees: float = number(0, 180)
    translate: float = number(0, 1)
    shear: float = number(0, 90)
    color_jitter: float = number(0, 1)
    rand_augment: int = number(0, 30, note="0 is none; the paper uses 9 for ResNet-50.")
    erase: float = number(0, 1)

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, intervals in order, and a resize that a crop follows."""
        found = super().problems(prefix)
        if self.resize is not None and list(self.scale) == [1, 1]:
            what = "precedes a random crop, and scale=[1,1] makes none. Set one of them."
            found.append(Problem(f"{prefix}.resize={self.resize}", what))
        for name, highest in (("scale", 1.0), ("ratio", 10.0)):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1] <= highest:
                found.append(
                    Problem(
                        f"{prefix}.{name}={values}",
                        f"must be [low, high] with 0 < low <= high <= {highest:g}.",
                    )
                )
        return found


@dataclass
class Optimizer(Checked):
    """Learning rates of trunk and head; a loss with parameters scales the head's by its lr_scale."""

    _target_: str = MISSING
    lr: float = positive()
    head_lr: float = positive()
    weight_decay: float = number(0)
    # factor on the learning rate from each layer of the trunk to that below
    layer_decay: float | None = number(0, 1, open_low=True)
    sam_rho: float | None = positive("The paper uses 0.05.")  # sharpness-aware: two passes a step


@dataclass
class Adam(Optimizer):
    """Adam and AdamW."""

    betas: list[float] = field(default_factory=list)
    eps: float = positive()

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and both betas in [0, 1)."""
        found = super().problems(prefix)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            found.append(Problem(f"{prefix}.betas={self.betas}", "must be two numbers in [0, 1)."))
        return found


@dataclass
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    momentum: float = number(0, 1, open_high=True)
    nesterov: bool = MISSING


@dataclass
class RMSprop(Optimizer):
    """RMSprop: gradients over a running mean of their squares."""

    momentum: float = number(0, 1, open_high=True)
    alpha: float = number(0, 1, open_high=True)
    eps: float = positive()


@dataclass
class Schedule(Checked):
    """Factor on every learning rate, by optimizer step; warm-up rises linearly from 0."""

    _target_: str = MISSING
    warmup_steps: int = count(0)


@dataclass
class CosineSchedule(Schedule):
    """Half a cosine from 1 to `final` at the last step."""

    final: float = number(0, 1)


@dataclass
class StepSchedule(Schedule):
    """Times `gamma` after each `every` steps."""

    every: int = count(1)
    gamma: float = number(0, 1, open_low=True)


@dataclass
class MilestonesSchedule(Schedule):
    """Times `gamma` at each of the steps `milestones`."""

    milestones: list[int] = MISSING
    gamma: float = number(0, 1, open_low=True)

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and milestones that rise."""
        found, steps = super().problems(prefix), self.milestones
        if isinstance(steps, list | tuple) and (
            not steps or min(steps) < 1 or sorted(set(steps)) != list(steps)
        ):
            what = "must be steps in rising order, such as [1000,2000]."
            found.append(Problem(f"{prefix}.milestones={list(steps)}", what))
        return found


@dataclass
class Trainer(Checked):
    """Length and means of training; most arguments are pytorch_lightning.Trainer's own."""

    max_epochs: int = count(1)
    max_steps: int = count(-1, note="-1 means: max_epochs decides.")
    accelerator: str = choice("auto", "cpu", "gpu", "cuda", "mps")
    devices: Any = MISSING  # "auto", a number, or a list of GPUs; one process each
    timeout: int = count(1)  # seconds that a process waits for another
    precision: str = choice("32-true", "16-mixed", "bf16-mixed", "64-true")
    compile: bool = MISSING  # torch.compile what embeds in training
    batch_chunks: int = count(1)  # parts of a batch whose activations are alive one at a time
    gradient_clip_val: float | None = number(0, open_low=True)
    gradient_clip_algorithm: str = choice("norm", "value")
    on_nan: str = choice("stop", "skip")  # a step whose loss or gradient is not finite
    max_nan_steps: int = count(1)  # that on_nan=skip leaves out
    checkpoint_every_n_steps: int | None = count(1)  # besides after every epoch; null: then alone
    check_val_every_n_epoch: int = count(1)
    log_every_n_steps: int = count(1)
    enable_progress_bar: bool = MISSING

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and devices that can be counted."""
        found, devices = super().problems(prefix), self.devices
        numbers = devices if isinstance(devices, list | tuple) else [devices]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
        if isinstance(devices, list | tuple):
            fine = whole and len(set(numbers)) == len(numbers) > 0
            if fine and self.accelerator in ("cpu", "mps"):
                what = f"are numbers of GPUs, and {prefix}.accelerator={self.accelerator}. Give how many."
                found.append(Problem(f"{prefix}.devices={list(devices)}", what))
        else:
            fine = devices == "auto" or (whole and devices > 0)
            if fine and isinstance(devices, int) and devices > 1 and self.accelerator == "mps":
                what = f"and {prefix}.accelerator=mps is one device. Add {prefix}.devices=1."
                found.append(Problem(f"{prefix}.devices={devices}", what))
        if not fine:
            what = 'must be a number above 0, a list of different GPU numbers such as [0,1], or "auto".'
            found.append(Problem(f"{prefix}.devices={devices}", what))
        return found


@dataclass
class Loader(Checked):
    """How images are read. No number depends on it."""

    num_workers: int = count(0)
    eval_batch_size: int = count(1)


@dataclass
class Selection(Checked):
    """Which weights are evaluated on the test classes. Test classes choose nothing."""

    rule: str = choice("auto", "best", "last")
    metric: str = MISSING
    patience: int | None = count(1)  # stop after so many validations without a gain; null: never


@dataclass
class Evaluation(Checked):
    """What is measured."""

    metrics: list[str] = MISSING
    average: str = choice("micro", "macro")  # over queries, or over the means of classes
    backend: str = choice("auto", "faiss", "torch")  # auto: the faster; results are the same


@dataclass
class Logger(Checked):
    """Where curves go beside metrics.csv, which is always written."""

    name: str = choice("csv", "wandb", "tensorboard")


@dataclass
class WandbLogger(Logger):
    """Weights & Biases."""

    project: str = MISSING
    entity: str | None = None
    group: str | None = None  # a sweep's runs are grouped by its directory unless this is given
    mode: str = choice("online", "offline")
    gallery: int = count(
        0
    )  # queries shown with their nearest images: so many random, so many of the worst


@dataclass
class Claim(Checked):
    """A published number that an experiment aims at."""

    metric: str = MISSING  # as evaluation.metrics names it
    published: float = number(0, 100, open_low=True, note="In percent, as papers print it.")
    source: str = MISSING  # where it was read
    tolerance: float = positive("In percentage points.")
    seeds: int = count(1)  # that a verdict needs
    selected_on: str = choice("last", "best_val", "test_max")  # how the published epoch was chosen
    known_differences: list[str] = MISSING  # between the published run and this one
    # What of ours is compared: a run, the mean over the folds' models, or their embeddings side by side.
    models: str = choice("single", "separated", "concatenated")
    others: dict[str, float] = field(
        default_factory=dict
    )  # further metrics of the same row, percent
    concatenated: dict[str, float] = field(default_factory=dict)  # of the folds together, percent

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and a source."""
        found = super().problems(prefix)
        if not str(self.source).strip():
            found.append(Problem(f"{prefix}.source", "is empty: where was the number read?"))
        return found


@dataclass
class Train:
    """The whole configuration."""

    experiment: str | None = None  # file of configs/experiment; filled in by compose
    claim: Claim | None = MISSING
    pins: list[str] = MISSING  # groups and options that the file alone decides
    unpin: bool = MISSING
    data: Any = MISSING
    backbone: Any = MISSING
    head: Any = MISSING
    augment: Any = MISSING
    loss: Any = MISSING
    miner: Any = MISSING
    memory: Any = MISSING
    regularizer: Any = MISSING
    averaging: Any = MISSING
    callbacks: Any = MISSING
    sampler: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    trainer: Any = MISSING
    loader: Loader = field(default_factory=Loader)
    selection: Selection = field(default_factory=Selection)
    evaluation: Evaluation = field(default_factory=Evaluation)
    logger: Any = MISSING
    seed: int = count(0, 2**32 - 1)
    run_dir: str | None = None
    ckpt_path: str | None = None
    dry_run: bool = MISSING


@dataclass
class Eval(Train):
    """What dml-eval takes besides: what to evaluate, of which images, and what to write.

    dml/eval_command.py says which options go together.
    """

    run: str | None = None
    encoder: str | None = None
    runs: list[str] = field(default_factory=list)
    compare: list[str] = field(default_factory=list)
    embeddings_file: str | None = None
    labels: str | None = None
    similarity: str | None = None
    split: str = MISSING
    resamples: int = MISSING
    post: Any = field(default_factory=dict)
    compress: bool = MISSING
    train_embeddings: str | None = None
    out: str | None = None
    embeddings: str | None = None
    per_query: str | None = None
    per_class: str | None = None


def register() -> None:
    """Tell Hydra the schemas, under ``schema/<group>/<name>``."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=Train)
    store.store(group="schema", name="eval", node=Eval)
    store.store(group="schema/backbone", name="timm", node=Backbone)
    store.store(group="schema/head", name="linear", node=Head)
    store.store(group="schema/head", name="none", node=NoHead)
    store.store(group="schema/augment", name="standard", node=Augment)
    store.store(group="schema/optimizer", name="adam", node=Adam)
    store.store(group="schema/optimizer", name="sgd", node=SGD)
    store.store(group="schema/optimizer", name="rmsprop", node=RMSprop)
    store.store(group="schema/schedule", name="milestones", node=MilestonesSchedule)
    store.store(group="schema/schedule", name="constant", node=Schedule)
    store.store(group="schema/schedule", name="cosine", node=CosineSchedule)
    store.store(group="schema/schedule", name="step", node=StepSchedule)
    store.store(group="schema/trainer", name="default", node=Trainer)
    store.store(group="schema/logger", name="logger", node=Logger)
    store.store(group="schema/logger", name="wandb", node=WandbLogger)
    data.register(store)
    losses.register(store)
    extras.register(store)
    post.register(store)
    launch.register(store)
