"""One training run from a checked configuration to its record."""

import ctypes
import logging
import os
import sys
import time
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from torch import nn

from dml import build, record, tables
from dml.callbacks import EpochLines, Interrupted, StopOnSignal
from dml.config.check import checkpoint_path
from dml.config.compose import Composed
from dml.data import cache
from dml.data.images import BadImages
from dml.data.index import ImageIndex, ImageSet
from dml.data.loaders import EpochBatches, eval_loader, train_loader
from dml.data.preprocess import Preprocess
from dml.encoder import Encoder
from dml.errors import RunError
from dml.measure import (
    describe_data,
    embed_split,
    evaluation_options,
    load_encoder_weights,
    measure,
)
from dml.module import DmlModule

log = logging.getLogger("dml")


def train(composed: Composed, index: ImageIndex) -> dict[str, Any]:
    """Train, evaluate the test classes once, write the record; returns it.

    Raises ConfigurationError before anything is written, RunError or Interrupted after.
    """
    config, started = composed.config, time.monotonic()
    now = datetime.now(UTC)
    quieten_libraries()
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    # Filling fresh memory is an aid to debugging and costs time; results do not depend on it.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    pl.seed_everything(config.seed, verbose=False)
    encoder = build.encoder(config)
    loss = build.loss(config)
    run_dir = make_run_dir(composed)
    add_log_file(run_dir)
    tables.choices(composed)
    log.info("%s. Run directory: %s", tables.data(index), config.run_dir)
    bad_images = BadImages(config.data.on_bad_image)
    loggers = make_loggers(config, run_dir, checkpoint_path(config) is not None)
    # Test classes choose nothing: what trains is not given their images.
    fitted = fit(
        config, run_dir, index.part("train"), index.part("val"), encoder, loss, bad_images, loggers
    )
    metrics, protocol = final_evaluation(config, index, encoder, fitted.device, bad_images)
    result = {
        "format": record.FORMAT,
        "command": record.command(),
        "overrides": composed.overrides,
        "choices": [vars(choice) for choice in composed.choices],
        "config": build.plain(config),
        "seed": config.seed,
        "code": record.code_state(),
        "versions": record.versions(),
        "hardware": hardware(fitted.device),
        "started": now.isoformat(timespec="seconds"),
        "seconds": {"total": time.monotonic() - started, "training": fitted.seconds},
        "peak_memory_bytes": peak_memory(fitted.device),
        "data": describe_data(index, bad_images),
        "protocol": protocol,
        "checkpoint": fitted.checkpoint,
        "metrics": metrics,
    }
    record.write(result, run_dir)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update({f"test/{k}": v for k, v in metrics["test"].items()})
        logger.finalize("success")
    tables.results(result)
    log.info("Record: %s/%s", config.run_dir, record.FILE)
    return result


@dataclass
class Fitted:
    """What training leaves behind, beside the encoder's weights.

    checkpoint: the record's entry about the chosen weights.  seconds: of training, all sessions together.
    """

    device: torch.device
    checkpoint: dict[str, Any]
    seconds: float


def fit(
    config: DictConfig,
    run_dir: Path,
    train_set: ImageSet,
    val_set: ImageSet,
    encoder: Encoder,
    loss: nn.Module,
    bad_images: BadImages,
    loggers: list[Logger],
) -> Fitted:
    """Train the encoder, and load the weights into it that the selection rule names.

    val_set: the images that choose them; empty: none do.  Raises RunError or Interrupted.
    """
    sampler = build.sampler(config, train_set)
    if config.data.cache == "resized":
        side = cache.side_for(encoder.preprocess, config.augment.resize)
        workers = config.loader.num_workers
        train_set = cache.resized(train_set, side, config.data.cache_dir, workers)
    batches = train_loader(
        train_set,
        sampler,
        build.train_transform(config, encoder),
        config.seed,
        config.loader.num_workers,
    )
    module = DmlModule(
        encoder,
        loss,
        build.miner(config),
        optimizer=lambda module: build.optimizer(
            config, module.encoder, module.loss, module.regularizer
        ),
        schedule=lambda total_steps: build.schedule(config, total_steps),
        evaluation=evaluation_options(config, build.geometry(config)),
        bad_images=bad_images,
        seed=config.seed,
        memory=build.memory(config),
        regularizer=build.regularizer(config),
    )
    validation = (
        eval_loader(
            val_set,
            encoder.preprocess,
            config.loader.eval_batch_size,
            config.loader.num_workers,
            persistent=True,
        )
        if len(val_set)
        else None
    )
    resumed = checkpoint_path(config)
    if resumed is not None:
        step = torch.load(resumed, map_location="cpu", weights_only=True)["global_step"]
        assert isinstance(batches.batch_sampler, EpochBatches)
        batches.batch_sampler.resume_at(step)
        log.info("Resuming %s at step %d", resumed, step)
    stop = StopOnSignal(run_dir / "checkpoints" / "last.ckpt")
    best = best_checkpoint(config, run_dir, has_val=validation is not None)
    trainer = pl.Trainer(
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        precision=config.trainer.precision,
        gradient_clip_val=config.trainer.gradient_clip_val,
        check_val_every_n_epoch=config.trainer.check_val_every_n_epoch,
        log_every_n_steps=min(config.trainer.log_every_n_steps, len(batches)),
        default_root_dir=run_dir,
        logger=loggers,
        callbacks=callbacks(config, run_dir, best, stop, has_val=validation is not None),
        enable_progress_bar=config.trainer.enable_progress_bar and sys.stderr.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic="warn" if config.trainer.accelerator != "cpu" else True,
    )
    with stop.listening():
        trainer.fit(
            module,
            batches,
            validation,
            ckpt_path=None if resumed is None else str(resumed),
            weights_only=True if resumed is not None else None,
        )
    if stop.received is not None:  # in the last epoch's validation: everything is saved already
        raise Interrupted(stop.received, stop.checkpoint)
    device = trainer.strategy.root_device
    training_seconds = module.training_seconds + time.monotonic() - module.clock
    if trainer.global_step == 0:
        raise RunError(
            "training ended before its first step: trainer.max_epochs or max_steps allow none."
        )
    chosen = choose_checkpoint(config, trainer, best, run_dir, encoder)
    return Fitted(device, chosen, training_seconds)


def final_evaluation(
    config: DictConfig,
    index: ImageIndex,
    trained: Encoder,
    device: torch.device,
    bad_images: BadImages,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics of the record and the protocol behind them.

    The test classes are opened here, once, for three encoders: the frozen trunk's pooled features, the
    encoder as initialised and the trained one. The untrained encoder is built again from the seed, as it
    was before training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        untrained = build.encoder(config).to(device).eval()
    trained.to(device).eval()
    shared: dict[str, torch.Tensor] = {}

    def frozen(images: torch.Tensor) -> torch.Tensor:
        shared["pooled"] = untrained.pooled(images)
        return shared["pooled"]

    def initialised(images: torch.Tensor) -> torch.Tensor:
        del images  # `frozen` ran just before: one pass of the trunk serves both
        return untrained.embed(shared.pop("pooled"))

    similarity = build.geometry(config)
    metrics: dict[str, Any] = {"frozen": None, "untrained": None, "val": None, "test": None}
    backends: set[str] = set()
    splits = {"test": {"frozen": frozen, "untrained": initialised, "test": trained}}
    if len(index.part("val")):
        splits["val"] = {"val": trained}
    for split, encoders in splits.items():
        found = embed_split(config, index, split, encoders, trained.preprocess, device, bad_images)
        for name, embedded in found.items():
            compared_by = "cosine" if name == "frozen" else similarity
            result = measure(replace(embedded, similarity=compared_by), config)
            metrics[name] = result.metrics
            backends.add(result.backend)
    protocol = {
        "name": config.data.get("protocol", "standard"),
        "fold": config.data.get("fold"),
        "class_disjoint": index.class_disjoint,
        "queries": ALL_AGAINST_ALL if index.part("test").is_query is None else QUERY_AND_GALLERY,
        "ties": "expectation over the orders of tied items",
        "similarity": similarity,
        "similarity_frozen": "cosine",
        "normalized": trained.normalize,
        "backend": sorted(backends),
        "preprocess": trained.preprocess.as_dict(),
        "training_copies": training_copies(config, trained.preprocess),
    }
    return metrics, protocol


def training_copies(config: DictConfig, preprocess: Preprocess) -> dict[str, Any] | None:
    """What training read in place of the image files; None: the files themselves."""
    if config.data.cache == "none":
        return None
    return cache.describe(cache.side_for(preprocess, config.augment.resize))


ALL_AGAINST_ALL = "every image of the split, against all others of it; itself excluded by id"
QUERY_AND_GALLERY = (
    "the test split's queries against its gallery, other images; "
    "in validation every image against all others, itself excluded by id"
)


def best_checkpoint(config: DictConfig, run_dir: Path, has_val: bool) -> ModelCheckpoint | None:
    """Keeps the weights that were best on the validation classes, if they choose."""
    if not has_val or config.selection.rule == "last":
        return None
    return ModelCheckpoint(
        run_dir / "checkpoints",
        filename="best",
        monitor=f"val/{config.selection.metric}",
        mode="max",
        enable_version_counter=False,
    )


def callbacks(
    config: DictConfig,
    run_dir: Path,
    best: ModelCheckpoint | None,
    stop: StopOnSignal,
    has_val: bool,
) -> list[Callback]:
    """Everything beside training itself."""
    found: list[Callback] = [
        stop,
        EpochLines(),
        *build.callbacks(config),
        ModelCheckpoint(run_dir / "checkpoints", filename="last", enable_version_counter=False),
    ]
    if best is not None:
        found.append(best)
    if has_val and config.selection.patience is not None:
        found.append(
            EarlyStopping(
                f"val/{config.selection.metric}", patience=config.selection.patience, mode="max"
            )
        )
    if config.trainer.enable_progress_bar and sys.stderr.isatty():
        found.append(TQDMProgressBar(leave=False))
    return found


def choose_checkpoint(
    config: DictConfig,
    trainer: pl.Trainer,
    best: ModelCheckpoint | None,
    run_dir: Path,
    encoder: Encoder,
) -> dict[str, Any]:
    """Load the weights that the selection rule names into the encoder; says which and why."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if best is not None and best.best_model_path:
        path, rule = Path(best.best_model_path), f"best val/{config.selection.metric}"
        load_encoder_weights(encoder, path)
    else:
        path, rule = last, "last epoch"
    if not last.exists():  # training ended within its first epoch (trainer.max_steps)
        trainer.save_checkpoint(last)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return {
        "rule": rule,
        "file": str(path.relative_to(run_dir)),
        "epoch": int(checkpoint["epoch"]) + 1,
        "step": int(checkpoint["global_step"]),
    }


def make_run_dir(composed: Composed) -> Path:
    """Create the run directory with config.yaml and checkpoints/ in it."""
    config = composed.config
    if config.run_dir is None:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        loss = next(choice.option for choice in composed.choices if choice.group == "loss")
        config.run_dir = f"runs/{stamp}_{config.data.name}_{loss}_seed{config.seed}"
    run_dir = Path(config.run_dir).expanduser().absolute()
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    aside = run_dir / ".config.yaml"
    OmegaConf.save(OmegaConf.create(build.plain(config)), aside)
    aside.replace(run_dir / "config.yaml")
    return run_dir


def make_loggers(config: DictConfig, run_dir: Path, resumed: bool) -> list[Logger]:
    """metrics.csv always, W&B if chosen."""
    loggers: list[Logger] = [metrics_csv(run_dir, resumed)]
    if config.logger.name == "wandb":
        loggers.append(
            WandbLogger(
                name=run_dir.name,
                project=config.logger.project,
                entity=config.logger.entity,
                group=config.logger.group,
                offline=config.logger.mode == "offline",
                save_dir=run_dir,
                config=build.plain(config),
            )
        )
    return loggers


def metrics_csv(run_dir: Path, resumed: bool) -> CSVLogger:
    """Lightning's CSV logger, writing run_dir/metrics.csv; a resumed run keeps the rows before it."""
    path = run_dir / "metrics.csv"
    rows = tables.read_csv(path) if resumed and path.exists() else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")
        logger = CSVLogger(run_dir, name="", version="")
        logger.experiment.metrics.extend(rows)
    return logger


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run ran on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def peak_memory(device: torch.device) -> int:
    """Largest memory of the process so far; of the GPU where one is used. Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return record.peak_resident()


def add_log_file(run_dir: Path) -> None:
    """Write the log to run_dir/log.txt as well."""
    for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(run_dir / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step instead of giving them back each time.

    A step on the CPU allocates the same activations again and again; faulting the pages in anew takes
    about a sixth of its time (benchmarks/epoch.py). Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # names and values of malloc.h
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)


def quieten_libraries() -> None:
    """Leave out what Lightning says about itself at every start; its warnings stay."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
    # Training that ends before its first validation: the results say which weights were taken.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    warnings.filterwarnings(
        "ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*"
    )
