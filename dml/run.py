"""One training run from a checked configuration to its record."""

import ctypes
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import Logger
from torch import nn

from dml import build, checkpoints, distributed, faults, loggers, record, tables
from dml.callbacks import EpochLines, Interrupted, StopOnSignal
from dml.checkpoints import KeepBest, Resumed, SaveLast, StopEarly, WholeFiles
from dml.chunks import check_chunks
from dml.config.check import checkpoints_to_resume
from dml.config.compose import Composed
from dml.data import cache
from dml.data.images import BadImages
from dml.data.index import ImageIndex, ImageSet
from dml.data.loaders import EpochBatches, eval_loader, train_loader
from dml.data.preprocess import Preprocess
from dml.embedding_files import Embedded
from dml.encoder import Encoder
from dml.errors import ConfigurationError, Problem, RunError
from dml.hardware import check_hardware
from dml.log_file import log_to
from dml.loggers import Gallery
from dml.measure import (
    before_training,
    describe_data,
    embed_split,
    evaluation_options,
    load_encoder_weights,
    measure,
    untrained_encoder,
)
from dml.module import DmlModule
from dml.run_directory import BEST, CHECKPOINTS, LAST, remove_leftovers
from dml.sync_batchnorm import synchronised

log = logging.getLogger("dml")


def train(composed: Composed, index: ImageIndex) -> dict[str, Any] | None:
    """Train, evaluate the test classes once, write the record; returns it.

    One of several processes does its part; the first alone writes, speaks, and has a record to return.

    Raises ConfigurationError before anything is written, RunError or Interrupted after.
    """
    with distributed.joined(composed.config):
        try:
            return train_joined(composed, index)
        except Interrupted as stopped:  # all processes stop together; none of them has failed
            interrupted = stopped
    raise interrupted


def train_joined(composed: Composed, index: ImageIndex) -> dict[str, Any] | None:
    """`train`, once all processes of the run have found each other."""
    config, started = composed.config, time.monotonic()
    now = datetime.now(UTC)
    # Both as they are now: a long run may outlive the checkout's state and the file.
    code, weights = record.code_state(), record.weights_file(config.backbone.weights)
    begun = begin(composed, index)
    with (
        faults.explained(config, begun.run_dir, begun.stage),
        loggers.opened(config, begun.run_dir, begun.resumed) as opened,
    ):
        # Test classes choose nothing: what trains is not given their images.
        fitted = fit(config, begun, index.part("train"), index.part("val"), opened)
        begun.stage.name = "evaluation"
        metrics, protocol, tested = final_evaluation(
            config, index, begun.encoder, fitted.device, begun.bad_images, fitted.plain
        )
        begun.bad_images.skipped = distributed.merged(begun.bad_images.skipped)
        memory = distributed.largest(peak_memory(fitted.device))
        if not distributed.is_first():
            return None
        content = {
            "format": record.FORMAT,
            "command": record.command(),
            "overrides": composed.overrides,
            "choices": [vars(choice) for choice in composed.choices],
            "config": build.plain(config),
            "seed": config.seed,
            "code": code,
            "versions": record.versions(),
            "hardware": hardware(fitted.device),
            "started": now.isoformat(timespec="seconds"),
            "seconds": {"total": time.monotonic() - started, "training": fitted.seconds},
            "peak_memory_bytes": memory,
            "data": describe_data(index, begun.bad_images),
            "nan_steps": fitted.nan_steps,
            "protocol": protocol,
            "weights": weights,
            "checkpoint": fitted.checkpoint,
            "metrics": metrics,
        }
        result = record.sealed(content)
        record.write(result, begun.run_dir)
        assert tested is not None
        shown = Gallery(tested, index.part("test"), begun.encoder.preprocess)
        loggers.results(opened, result, begun.run_dir, shown)
    tables.results(result)
    log.info("Record: %s/%s", config.run_dir, record.FILE)
    return result


def validated(
    composed: Composed, index: ImageIndex, watching: Sequence[Callback]
) -> dict[str, float]:
    """Train, and measure on the validation classes alone; the test classes stay closed, and no record is
    written.

    watching: callbacks besides those of the configuration.  In one process.  Raises as `train`.
    """
    config = composed.config
    with distributed.joined(config):
        begun = begin(composed, index)
    with (
        faults.explained(config, begun.run_dir, begun.stage),
        loggers.opened(config, begun.run_dir, begun.resumed) as opened,
    ):
        fitted = fit(config, begun, index.part("train"), index.part("val"), opened, watching)
        begun.stage.name = "evaluation"
        encoder = begun.encoder.to(fitted.device).eval()
        found = embed_split(
            *(config, index, "val", {"val": encoder}),
            *(encoder.preprocess, fitted.device, begun.bad_images),
        )
        return measure(replace(found["val"], similarity=build.geometry(config)), config).metrics


@dataclass
class Begun:
    """A run before its first step: the encoder and loss from the seed, and the directory they go to.

    stage: what it is at.  resumed: the checkpoint that it goes on from, or None.
    """

    encoder: Encoder
    loss: nn.Module
    run_dir: Path
    bad_images: BadImages
    stage: faults.Stage = field(default_factory=faults.Stage)
    resumed: Resumed | None = None


def begin(composed: Composed, index: ImageIndex) -> Begun:
    """Build what is trained, then make the run directory and say what the run is.

    Raises ConfigurationError before anything is written.
    """
    config = composed.config
    quieten_libraries()
    check_hardware(config)
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    # Filling fresh memory is an aid to debugging and costs time; results do not depend on it.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    pl.seed_everything(config.seed, verbose=False)
    with distributed.first_here():  # fetches the weights, if they are not there yet
        encoder = build.encoder(config)
    synchronised(encoder, config)
    check_chunks(encoder, config.trainer.batch_chunks)
    loss = build.loss(config)
    run_dir = make_run_dir(composed)
    if distributed.is_first():
        log_to(run_dir)
        tables.choices(composed)
        log.info("%s. Run directory: %s", tables.data(index), config.run_dir)
    resumed = None
    if distributed.is_first():
        remove_leftovers(run_dir)
        resumed = checkpoints.newest_whole(checkpoints_to_resume(config))
        if resumed is not None:
            checkpoints.bring_along(resumed, run_dir)
    resumed = distributed.from_first(resumed)
    bad_images = BadImages(config.data.on_bad_image)
    return Begun(encoder, loss, run_dir, bad_images, resumed=resumed)


@dataclass
class Fitted:
    """What training leaves behind, beside the encoder's weights.

    checkpoint: the record's entry about the chosen weights.  seconds: of training, all sessions together.
    plain: where the encoder's weights are averages, one with the weights of the same step.  nan_steps: those
    left out since they were not finite.
    """

    device: torch.device
    checkpoint: dict[str, Any]
    seconds: float
    plain: Encoder | None
    nan_steps: list[int]


def fit(
    config: DictConfig,
    begun: Begun,
    train_set: ImageSet,
    val_set: ImageSet,
    opened: list[Logger],
    watching: Sequence[Callback] = (),
) -> Fitted:
    """Train the encoder, and load the weights into it that the selection rule names.

    val_set: the images that choose them; empty: none do.  opened: loggers.  watching: callbacks besides
    those of the configuration.  Raises RunError or Interrupted.
    """
    encoder, run_dir = begun.encoder, begun.run_dir
    sampler = build.sampler(config, train_set)
    if config.data.cache == "resized":
        side = cache.side_for(encoder.preprocess, config.augment.resize)
        workers = config.loader.num_workers
        with distributed.first_here():
            train_set = cache.resized(train_set, side, config.data.cache_dir, workers)
    batches = train_loader(
        train_set,
        sampler,
        build.train_transform(config, encoder),
        config.seed,
        config.loader.num_workers,
        distributed.rank(),
        distributed.world_size(),
    )
    module = DmlModule(
        encoder,
        begun.loss,
        build.miner(config),
        optimizer=lambda module: build.optimizer(
            config, module.encoder, module.loss, module.regularizer
        ),
        schedule=lambda total_steps: build.schedule(config, total_steps),
        evaluation=evaluation_options(config, build.geometry(config)),
        bad_images=begun.bad_images,
        seed=config.seed,
        memory=build.memory(config),
        regularizer=build.regularizer(config),
        batch_chunks=config.trainer.batch_chunks,
        compiled=config.trainer.compile,
        sam_rho=config.optimizer.sam_rho,
        averaging=build.averaging(config),
        gathers=build.gathers(config),
        nan_steps=faults.NanSteps(config.trainer.on_nan, config.trainer.max_nan_steps, train_set),
    )
    validation = (
        eval_loader(
            val_set,
            encoder.preprocess,
            config.loader.eval_batch_size,
            config.loader.num_workers,
            persistent=True,
            positions=distributed.share_of(len(val_set)),
        )
        if len(val_set)
        else None
    )
    resumed = begun.resumed
    if resumed is not None:
        assert isinstance(batches.batch_sampler, EpochBatches)
        batches.batch_sampler.resume_at(resumed.step)
        log.info("Resuming %s at step %d", resumed.path, resumed.step)
    stop = StopOnSignal(run_dir / CHECKPOINTS / LAST)
    best = best_checkpoint(config, run_dir, has_val=validation is not None)
    processes = distributed.trainer_arguments(config)
    plugins = [*processes.pop("plugins", []), WholeFiles()]
    trainer = pl.Trainer(
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        accelerator=config.trainer.accelerator,
        **processes,
        plugins=plugins,
        precision=config.trainer.precision,
        gradient_clip_val=config.trainer.gradient_clip_val,
        gradient_clip_algorithm=config.trainer.gradient_clip_algorithm,
        check_val_every_n_epoch=config.trainer.check_val_every_n_epoch,
        log_every_n_steps=min(config.trainer.log_every_n_steps, len(batches)),
        default_root_dir=run_dir,
        logger=opened,
        callbacks=[
            *callbacks(config, run_dir, best, stop, has_val=validation is not None),
            begun.stage,
            *watching,
        ],
        enable_progress_bar=config.trainer.enable_progress_bar and sys.stderr.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic="warn" if config.trainer.accelerator != "cpu" else True,
    )
    if config.trainer.precision == "64-true":
        # Lightning does so too, but after it has loaded the checkpoint, which would round the weights.
        module.double()
    with stop.listening():
        trainer.fit(
            module,
            batches,
            validation,
            ckpt_path=None if resumed is None else str(resumed.path),
            weights_only=True if resumed is not None else None,
        )
    if received := stop.agreed():  # in the last epoch's validation: everything is saved already
        raise Interrupted(received, stop.checkpoint)
    device = trainer.strategy.root_device
    training_seconds = module.training_seconds + time.monotonic() - module.clock
    if trainer.global_step == 0:
        raise RunError(
            "training ended before its first step: trainer.max_epochs or max_steps allow none."
        )
    chosen = choose_checkpoint(config, best, run_dir, encoder)
    plain = None
    if module.averaged is not None:
        plain = deepcopy(encoder)
        load_encoder_weights(plain, run_dir / chosen["file"], averaged=False)
    return Fitted(device, chosen, training_seconds, plain, module.nan_steps.steps)


def final_evaluation(
    config: DictConfig,
    index: ImageIndex,
    trained: Encoder,
    device: torch.device,
    bad_images: BadImages,
    plain: Encoder | None = None,
) -> tuple[dict[str, Any], dict[str, Any], Embedded | None]:
    """Metrics of the record, the protocol behind them, and the first process's test embeddings.

    The test classes are opened here, once, for three encoders: the frozen trunk's pooled features, the
    encoder as initialised and the trained one. The untrained encoder is built again from the seed, as it
    was before training. Where the trained weights are averages, `plain` has those of the same step, for
    `val_plain` and `test_plain`.
    """
    untrained = untrained_encoder(config).to(device).eval()
    trained.to(device).eval()
    similarity = build.geometry(config)
    metrics: dict[str, Any] = {"frozen": None, "untrained": None, "val": None, "test": None}
    backends: set[str] = set()
    tested = None
    splits = {"test": {**before_training(untrained), "test": trained}}
    if len(index.part("val")):
        splits["val"] = {"val": trained}
    if plain is not None:
        for split, encoders in splits.items():
            encoders[f"{split}_plain"] = plain.to(device).eval()
    for split, encoders in splits.items():
        found = embed_split(config, index, split, encoders, trained.preprocess, device, bad_images)
        for name, embedded in found.items() if distributed.is_first() else ():
            compared_by = "cosine" if name == "frozen" else similarity
            result = measure(replace(embedded, similarity=compared_by), config)
            metrics[name] = result.metrics
            backends.add(result.backend)
            if name == "test":
                tested = replace(embedded, similarity=compared_by)
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
    return metrics, protocol, tested


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
    return KeepBest(
        run_dir / CHECKPOINTS,
        filename=BEST.removesuffix(".ckpt"),
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
    ]
    if has_val and config.selection.patience is not None:
        metric = f"val/{config.selection.metric}"
        found.append(StopEarly(metric, patience=config.selection.patience, mode="max"))
    if best is not None:
        found.append(best)
    found.append(SaveLast(run_dir / CHECKPOINTS / LAST, config.trainer.checkpoint_every_n_steps))
    if config.trainer.enable_progress_bar and sys.stderr.isatty():
        found.append(TQDMProgressBar(leave=False))
    return found


def choose_checkpoint(
    config: DictConfig,
    best: ModelCheckpoint | None,
    run_dir: Path,
    encoder: Encoder,
) -> dict[str, Any]:
    """Load the weights that the selection rule names into the encoder; says which and why."""
    if best is not None and best.best_model_path:
        path, rule = Path(best.best_model_path), f"best val/{config.selection.metric}"
    else:
        path, rule = run_dir / CHECKPOINTS / LAST, "last epoch"
    checkpoint = checkpoints.whole(path)
    load_encoder_weights(encoder, path)
    averaging = config.averaging._target_
    return {
        "rule": rule,
        "weights": "plain" if averaging is None else f"averaged by {averaging.split('.')[-1]}",
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
    config.run_dir = distributed.from_first(config.run_dir)  # its name holds the time
    run_dir = Path(config.run_dir).expanduser().absolute()
    if not distributed.is_first():
        return run_dir
    try:
        (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        with record.aside(run_dir / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(build.plain(config))).encode())
    except OSError as error:
        what = f"cannot be written ({error.strerror}). {faults.free(run_dir)}\nChoose another directory."
        raise ConfigurationError([Problem(f"run_dir={config.run_dir}", what)]) from error
    return run_dir


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run ran on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }


def peak_memory(device: torch.device) -> int:
    """Largest memory of the process so far; of the GPU where one is used. Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return record.peak_resident()


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
    """Leave out what Lightning says about itself at every start; its warnings stay.

    Of several processes the first alone warns.
    """
    if not distributed.is_first():
        warnings.simplefilter("ignore")
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
    # Frozen BatchNorm and averaged weights are in evaluation mode, as they should be.
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start.*")
    # Training that ends before its first validation: the results say which weights were taken.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # Several processes: what is logged is the same on all; a part of the network may be frozen later.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified.*")
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
    warnings.filterwarnings(
        "ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*"
    )
