"""Where curves and results go: metrics.csv always; Weights & Biases or TensorBoard where chosen."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dml import build, distributed, record, tables

WANDB_ID = "wandb_id.txt"  # which run of W&B a run directory is, for when it is resumed
TENSORBOARD = "tensorboard"  # the folder of event files within a run directory


@contextmanager
def opened(config: DictConfig, run_dir: Path, resumed: bool) -> Iterator[list[Logger]]:
    """The loggers that the configuration chooses, closed at the end whatever happens within.

    The first of several processes has them, the others none.

    A run of W&B that stayed open would take in the curves of the next run of this process.
    """
    found = make(config, run_dir, resumed) if distributed.is_first() else []
    status, code = "failed", 1
    try:
        yield found
        status, code = "success", 0
    finally:
        for logger in found:
            logger.finalize(status)
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=code)


def make(config: DictConfig, run_dir: Path, resumed: bool) -> list[Logger]:
    """metrics.csv, and what `logger` names."""
    found: list[Logger] = [metrics_csv(run_dir, resumed)]
    if config.logger.name == "wandb":
        found.append(wandb_logger(config, run_dir, resumed))
    elif config.logger.name == "tensorboard":
        events = TensorBoardLogger(run_dir, name="", version=TENSORBOARD, default_hp_metric=False)
        events.log_hyperparams(build.plain(config))
        found.append(events)
    return found


def metrics_csv(run_dir: Path, resumed: bool) -> CSVLogger:
    """Lightning's CSV logger, writing run_dir/metrics.csv; a resumed run keeps the rows before it."""
    path = run_dir / "metrics.csv"
    rows = tables.read_csv(path) if resumed and path.exists() else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")
        logger = CSVLogger(run_dir, name="", version="")
        logger.experiment.metrics.extend(rows)
    return logger


def wandb_logger(config: DictConfig, run_dir: Path, resumed: bool) -> WandbLogger:
    """A run of W&B; a resumed run goes on with the one it began."""
    import wandb

    options, kept = config.logger, run_dir / WANDB_ID
    if not (resumed and kept.exists()):
        with record.aside(kept) as file:
            file.write(wandb.util.generate_id().encode())
    return WandbLogger(
        name=run_dir.name,
        id=kept.read_text(),
        project=options.project,
        entity=options.entity,
        group=options.group,
        mode=options.mode,  # Lightning's own `offline` would stay in the environment after this run
        save_dir=run_dir,
        config=build.plain(config),
    )


def results(
    loggers: Sequence[Logger],
    result: Mapping[str, Any],
    run_dir: Path,
) -> None:
    """What came out: the metrics of every evaluation; for W&B the record as an artifact."""
    values = {
        f"{which}/{name}": value
        for which, metrics in result["metrics"].items()
        for name, value in (metrics or {}).items()
    }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(values, step=result["checkpoint"]["step"])
        elif isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.summary.update(values)
            artifact = wandb.Artifact(f"record-{logger.experiment.id}", type="record")
            artifact.add_file(str(run_dir / record.FILE))
            logger.experiment.log_artifact(artifact)
