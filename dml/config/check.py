"""Rules: ranges within each group, then what holds between groups and between options and data.

Everything wrong is collected and raised together, before torch is imported and anything is written.
"""

import dataclasses
import netrc
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dml import build, processes
from dml.config import saved
from dml.config.compose import Composed
from dml.config.pins import dotted, flat
from dml.config.ranges import MISSING, Checked
from dml.data.index import SPLITS, ImageIndex
from dml.errors import ConfigurationError, Problem, RunError
from dml.evaluation.names import parse
from dml.run_directory import CHECKPOINTS, resumable
from dml.run_directory import LAST as LAST_CHECKPOINT

GROUPS = (
    "data",
    "backbone",
    "head",
    "augment",
    "loss",
    "miner",
    "memory",
    "regularizer",
    "averaging",
    "callbacks",
    "sampler",
    "optimizer",
    "schedule",
    "trainer",
    "loader",
    "selection",
    "evaluation",
    "logger",
)


def check(composed: Composed, problems: list[Problem]) -> ImageIndex:
    """Check a composed configuration; `problems` are those the command line already has.

    Fills in what the data decide (`data.num_train_classes`) and returns the data's index.

    Raises ConfigurationError with every problem found.
    """
    config = composed.config
    found = list(problems)
    data_problems = node_problems(config, "data")
    index = None
    others = [problem for group in GROUPS[1:] for problem in node_problems(config, group)]
    others += seed_problems(config) + claim_problems(config)
    # The embedded sets are drawn at first use, which takes seconds: with mistakes to report, not now.
    if not data_problems and (config.data.root is not None or not (found or others)):
        try:
            index = build.index(config)
        except ConfigurationError as error:
            data_problems = error.problems
    found += data_problems + others
    if index is not None:
        config.data.num_train_classes = len(index.classes_of("train"))
        found += rules_with_data(composed, index)
    found += rules(composed) + run_dir_problems(composed)
    if found or index is None:
        raise ConfigurationError(found)
    return index


def check_data(composed: Composed) -> ImageIndex:
    """Check what an evaluation needs of a configuration: its data, evaluation and loader groups.

    Raises ConfigurationError with every problem found.
    """
    found = [
        problem
        for group in ("data", "evaluation", "loader")
        for problem in node_problems(composed.config, group)
    ]
    if found:
        raise ConfigurationError(found)
    return build.index(composed.config)


def node_problems(config: DictConfig, group: str) -> list[Problem]:
    """Missing values and values out of range in one group, or in a loss within a sum (`loss.first`)."""
    node = OmegaConf.select(config, group)
    schema = build.schema_of(node)
    if not (isinstance(schema, type) and issubclass(schema, Checked)):
        return [Problem(f"{group}=?", "its file names no schema; add /schema/... to its defaults.")]
    values: dict[str, Any] = {}
    found, inner = [], []
    for key in node:
        try:
            value = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]
            if OmegaConf.is_missing(node, key) or value == MISSING:
                found.append(Problem(f"{group}.{key}", f"has no value. Add {group}.{key}=..."))
                continue
            value = node[key]
        except OmegaConfBaseException:
            continue  # refers to something that is itself reported (data that could not be read)
        part = build.schema_of(value)
        if isinstance(part, type) and issubclass(part, Checked):
            inner += node_problems(config, f"{group}.{key}")
        values[str(key)] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if found:
        return found + inner
    filled = object.__new__(schema)  # no constructor: it would stop at its own first problem
    filled.__dict__.update(
        dict.fromkeys(field.name for field in dataclasses.fields(cast(Any, schema)))
    )
    filled.__dict__.update(values)
    return filled.problems(group) + inner


def seed_problems(config: DictConfig) -> list[Problem]:
    """The top level has one range."""
    if 0 <= config.seed < 2**32:
        return []
    return [Problem(f"seed={config.seed}", "must lie in [0, 4294967295].")]


def claim_problems(config: DictConfig) -> list[Problem]:
    """What an experiment's claim lacks."""
    if config.claim is None:
        return []
    file = f"configs/experiment/{config.experiment}.yaml"
    found = node_problems(config, "claim")
    named = list(config.evaluation.metrics)
    if not found and config.claim.metric not in named:
        what = f"is not among evaluation.metrics ({', '.join(named)})."
        found.append(Problem(f"claim.metric={config.claim.metric}", what))
    return [Problem(p.where, f"{p.what.split(' Add claim')[0]}\nMend it in {file}.") for p in found]


def words(composed: Composed, group: str) -> str:
    """`loss=circle`, as chosen."""
    if group in composed.options:
        return f"{group}={composed.options[group]}"
    return next(
        (f"{choice.group}={choice.option}" for choice in composed.choices if choice.group == group),
        group,
    )


def rules(composed: Composed) -> list[Problem]:
    """What must hold between groups, whatever the data."""
    config, found = composed.config, []
    losses = build.loss_parts(config)
    sampler, miner = (build.schema_of(config, group) for group in ("sampler", "miner"))
    for key, loss in losses.items():
        if loss.compares != "proxies" and not sampler.promises_positives:
            found.append(
                Problem(
                    words(composed, "sampler"),
                    f"{words(composed, key)} compares {loss.compares} within a batch, and "
                    f"{words(composed, 'sampler')} promises no two images of a class.\n"
                    f"Drop {words(composed, 'sampler')} ({words(composed, 'loss')} brings its own "
                    "sampler), or choose a loss with proxies (loss=proxy_nca).",
                )
            )
            break
    if miner.kind is not None and not any(miner.kind in loss.miners for loss in losses.values()):
        takes = " or ".join(dict.fromkeys(kind for loss in losses.values() for kind in loss.miners))
        found.append(
            Problem(
                words(composed, "miner"),
                f"{words(composed, 'miner')} finds {miner.kind}, and {words(composed, 'loss')} takes "
                + (f"{takes} only." if takes else "no miner.")
                + " Drop it, or add miner=none.",
            )
        )
    if not build.schema_of(config, "head").embeds and config.experiment is not None:
        what = f"trains nothing. Evaluate it: dml-eval experiment={config.experiment} data.root=DIR"
        found.append(Problem(f"experiment={config.experiment}", what))
    elif not build.schema_of(config, "head").embeds:
        found.append(
            Problem(
                words(composed, "head"),
                "has no embedding layer to train; it is for dml-eval backbone=... Add head=linear.",
            )
        )
    found += rules_of_extras(composed)
    if not node_problems(config, "trainer"):
        found += processes.problems(config)
    if config.trainer.precision == "16-mixed" and config.trainer.accelerator == "cpu":
        found.append(half_precision_problem())
    if len({loss.geometry for loss in losses.values()}) > 1:
        kinds = ", ".join(f"{words(composed, k)} by {v.geometry}" for k, v in losses.items())
        found.append(
            Problem(
                words(composed, "loss"),
                f"its losses compare embeddings in different ways ({kinds}), and the evaluation "
                "can follow one only.\nChoose losses that compare alike.",
            )
        )
    metrics = list(config.evaluation.metrics)
    found += metric_problems(metrics)
    if config.selection.metric not in metrics:
        found.append(
            Problem(
                f"selection.metric={config.selection.metric}",
                f"is not among evaluation.metrics ({', '.join(metrics)}).",
            )
        )
    elif not metric_problems(metrics) and not parse(config.selection.metric).is_aim:
        found.append(
            Problem(
                f"selection.metric={config.selection.metric}",
                "is no measure of which more is better, so it cannot choose a checkpoint.\n"
                "Choose one that is, for example selection.metric=recall@1.",
            )
        )
    if config.logger.name == "tensorboard" and find_spec("tensorboard") is None:
        what = "needs tensorboard, which is not installed.\npip install 'dml[tensorboard]'"
        found.append(Problem(words(composed, "logger"), what))
    if config.logger.name == "wandb" and config.logger.mode == "online" and not wandb_login():
        found.append(
            Problem(
                words(composed, "logger"),
                "Weights & Biases has no login here.\n"
                "Run `wandb login`, set WANDB_API_KEY, or add logger.mode=offline.",
            )
        )
    return found


def half_precision_problem() -> Problem:
    """float16 arithmetic is a GPU's."""
    what = "needs a GPU: add trainer.precision=bf16-mixed, or 32-true."
    return Problem("trainer.precision=16-mixed", what)


def metric_problems(names: Sequence[str]) -> list[Problem]:
    """Names that are no metric, or none at all."""
    found = (
        [] if names else [Problem("evaluation.metrics=[]", "must name a metric: recall@1, map@r.")]
    )
    for name in names:
        try:
            parse(name)
        except ValueError as error:
            found.append(Problem("evaluation.metrics", f"{error}."))
    return found


def rules_of_extras(composed: Composed) -> list[Problem]:
    """What a memory and a regulariser demand of loss and miner."""
    config, found = composed.config, []
    losses = build.loss_parts(config)
    remembers = config.memory._target_ is not None
    if remembers and not any(loss.takes_reference for loss in losses.values()):
        proxies = all(loss.compares == "proxies" for loss in losses.values())
        why = (
            "compares images with proxies, and a memory holds images"
            if proxies
            else "cannot leave an image's own copy in the memory out"
        )
        found.append(
            Problem(
                words(composed, "memory"),
                f"{words(composed, 'loss')} {why}.\nDrop {words(composed, 'memory')}, or choose a "
                "loss between images (loss=contrastive).",
            )
        )
    if build.schema_of(config, "regularizer").switches_triplets:
        if build.schema_of(config, "miner").kind != "triplets":
            found.append(
                Problem(
                    words(composed, "regularizer"),
                    f"switches a miner's triplets, and {words(composed, 'miner')} finds none.\n"
                    "Add miner=distance_weighted, as in the paper.",
                )
            )
        if remembers:
            found.append(
                Problem(
                    words(composed, "regularizer"),
                    f"switches triplets within a batch and does not go with {words(composed, 'memory')}. "
                    "Drop one of them.",
                )
            )
    return found


def wandb_login() -> bool:
    """Whether W&B would find a key: in the environment, or in the netrc file where it keeps them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def rules_with_data(composed: Composed, index: ImageIndex) -> list[Problem]:
    """What must hold between the options and the data."""
    config, found = composed.config, []
    train = index.part("train")
    for split in SPLITS:
        part = index.part(split)
        if part.num_classes < 2 and split != "val":
            what = f"its {split} split has {part.num_classes} classes, and at least 2 are needed."
            found.append(Problem(words(composed, "data"), what))
        elif split != "train" and len(part) and part.class_sizes().max() < 2:
            what = (
                f"its {split} split has one image a class: no image has another to be found by.\n"
            )
            what += f"Raise data.{split}_fraction, or add" if index.closed_set else "Add"
            found.append(Problem(words(composed, "data"), f"{what} images."))
    if len(train) and not node_problems(config, "sampler"):
        try:
            sampler = build.sampler(config, train)
        except ConfigurationError as error:
            found += error.problems
        else:
            found += memory_problems(config, sampler.batch_size, len(sampler))
            found += share_problems(config, sampler)
    has_val = len(index.part("val")) > 0
    if not has_val and config.selection.rule == "best":
        found.append(
            Problem(
                "selection.rule=best",
                "needs validation classes, and there are none.\n"
                f"Add {validating(config)}, or selection.rule=last.",
            )
        )
    if not has_val and config.selection.patience is not None:
        found.append(
            Problem(
                f"selection.patience={config.selection.patience}",
                "early stopping needs validation classes, and there are none.",
            )
        )
    return found


def validating(config: DictConfig) -> str:
    """The option that gives a run validation classes."""
    if config.data.get("protocol") == "standard_full":
        return "data.protocol=standard"
    return "data.val_fraction=0.1"


def memory_problems(config: DictConfig, batch_size: int, batches: int) -> list[Problem]:
    """A memory holds at least one batch and is used before the run is over."""
    if config.memory._target_ is None or node_problems(config, "memory"):
        return []
    found = []
    size, start = config.memory.size, config.memory.start_step
    if batch_size > size:
        found.append(
            Problem(
                f"memory.size={size}",
                f"holds less than one batch ({batch_size} images). Add memory.size={batch_size} or "
                "more; the paper's memories hold half of the training images and up to all of them.",
            )
        )
    steps = batches * config.trainer.max_epochs
    if config.trainer.max_steps >= 0:
        steps = min(steps, config.trainer.max_steps)
    if start >= steps:
        found.append(
            Problem(
                f"memory.start_step={start}",
                f"is never reached: the run has {steps} steps. Add memory.start_step=0, or a longer run.",
            )
        )
    return found


def share_problems(config: DictConfig, sampler: Any) -> list[Problem]:
    """A batch that several processes cannot share evenly, or that is cut into more chunks than images."""
    if node_problems(config, "trainer"):
        return []
    number, chunks = processes.world_size(config) or 1, config.trainer.batch_chunks
    if number > 1:
        try:
            next(sampler.batches(0, 0, number))
        except ConfigurationError as error:
            return error.problems
    if chunks > (share := sampler.batch_size // number):
        whose = "batches" if number == 1 else "each process's part"
        what = f"cuts {whose} of {share} images into more parts than images."
        return [Problem(f"trainer.batch_chunks={chunks}", what)]
    return []


def run_dir_problems(composed: Composed) -> list[Problem]:
    """Where the run is written and what it resumes."""
    config, found = composed.config, []
    directory = Path(config.run_dir).expanduser() if config.run_dir else None
    checkpoints = checkpoints_to_resume(config)
    if directory and directory.exists() and not directory.is_dir():
        found.append(Problem(f"run_dir={config.run_dir}", "is a file. Choose a directory."))
    elif why := not_writable(directory or Path("runs")):
        found.append(Problem(f"run_dir={config.run_dir or 'runs/...'}", why))
    elif directory and (directory / "record.json").exists() and config.ckpt_path != AUTO:
        found.append(
            Problem(
                f"run_dir={config.run_dir}",
                "holds a finished run (record.json).\nChoose another directory, or remove that one.",
            )
        )
    elif directory and not config.ckpt_path and resumable(directory):
        found.append(
            Problem(
                f"run_dir={config.run_dir}",
                "holds an unfinished run.\nAdd ckpt_path=last to resume it, or choose another directory.",
            )
        )
    if config.ckpt_path in (LAST, AUTO) and directory is None:
        what = "of which run? Add run_dir=DIR, the directory of that run."
        found.append(Problem(f"ckpt_path={config.ckpt_path}", what))
    elif config.ckpt_path == LAST and not checkpoints:
        missing = Path(config.run_dir).expanduser() / CHECKPOINTS / LAST_CHECKPOINT
        found.append(Problem("ckpt_path=last", f"there is no file {missing}."))
    elif config.ckpt_path not in (None, LAST, AUTO) and not checkpoints[0].is_file():
        found.append(
            Problem(f"ckpt_path={config.ckpt_path}", f"there is no file {checkpoints[0]}.")
        )
    elif directory is not None and (checkpoints or is_finished(config)):
        found += changed_options(composed, directory)
    return found


def is_finished(config: DictConfig) -> bool:
    """Whether there is nothing left to do: `ckpt_path=auto`, and the run has its record."""
    directory = Path(config.run_dir or ".").expanduser()
    return config.ckpt_path == AUTO and (directory / "record.json").exists()


def not_writable(directory: Path) -> str | None:
    """Why a directory cannot be made or written to, and the mend; None: nothing is known against it."""
    directory = directory.absolute()
    there = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not there.is_dir():
        return f"lies below {there}, which is a file. Choose a directory."
    if not os.access(there, os.W_OK | os.X_OK):
        return f"cannot be written: {there} is read-only. Choose another directory: run_dir=DIR."
    return None


LAST, AUTO = "last", "auto"  # words for ckpt_path


def checkpoints_to_resume(config: DictConfig) -> list[Path]:
    """What `ckpt_path` means: the run goes on from the first that is whole; none at all: it begins."""
    if config.ckpt_path is None:
        return []
    if config.ckpt_path in (LAST, AUTO):
        return resumable(Path(config.run_dir).expanduser()) if config.run_dir else []
    return [Path(config.ckpt_path).expanduser()]


# Options that may differ when a run is resumed: they decide no number, or only how far it goes.
MAY_CHANGE = (
    "run_dir",
    "ckpt_path",
    "dry_run",
    "claim",
    "loader.",
    "data.cache_dir",
    "logger.",
    "trainer.enable_progress_bar",
    "trainer.devices",  # any number of processes trains the same model
    "trainer.timeout",
    "trainer.checkpoint_every_n_steps",
    "trainer.batch_chunks",  # the same gradient in any number of parts
    "trainer.on_nan",  # of a step that otherwise ended the run
    "trainer.max_nan_steps",
)


def changed_options(composed: Composed, directory: Path) -> list[Problem]:
    """Options that differ between the run to be resumed and this command line."""
    path = directory / "config.yaml"
    if not path.is_file():
        return []
    try:
        before, now = dotted(saved.read(path)), flat(composed.config)
    except RunError as error:
        what = f"{error}\nWithout it nothing tells what is resumed: start a new run."
        return [Problem(f"run_dir={composed.config.run_dir}", what)]
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if (key, new) == (
            "selection.rule",
            "last",
        ):  # the last epoch's weights are there in any case
            continue
        if old != new and not key.startswith(MAY_CHANGE):
            found.append(
                Problem(
                    f"{key}={new}",
                    f"the run in {directory} was started with {old}. Add {key}={old}, or start a new run.",
                )
            )
    return found
