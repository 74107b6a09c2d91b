"""Where curves and results go: metrics.csv always; Weights & Biases or TensorBoard where chosen."""

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from dml import build, distributed, record, tables
from dml.checkpoints import Resumed
from dml.curves import Curves
from dml.data.index import ImageSet
from dml.data.preprocess import Preprocess
from dml.embedding_files import Embedded
from dml.report import gallery
from dml.report.page_pictures import thumbnail
from dml.run_directory import CURVES

log = logging.getLogger("dml")

WANDB_ID = "wandb_id.txt"  # which run of W&B a run directory is, for when it is resumed
NEAREST, SIDE, FRAME = 8, 96, 3  # images of a query, and their pixels
TENSORBOARD = "tensorboard"  # the folder of event files within a run directory


@contextmanager
def opened(config: DictConfig, run_dir: Path, resumed: Resumed | None) -> Iterator[list[Logger]]:
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


def make(config: DictConfig, run_dir: Path, resumed: Resumed | None) -> list[Logger]:
    """metrics.csv, and what `logger` names."""
    found: list[Logger] = [metrics_csv(run_dir, resumed)]
    if config.logger.name == "wandb":
        found.append(wandb_logger(config, run_dir, resumed is not None))
    elif config.logger.name == "tensorboard":
        events = TensorBoardLogger(
            run_dir,
            name="",
            version=TENSORBOARD,
            default_hp_metric=False,
            # What was logged after the checkpoint comes again.
            purge_step=None if resumed is None else resumed.step,
        )
        events.log_hyperparams(build.plain(config))
        found.append(events)
    if resumed is not None and resumed.row is not None:
        for logger in found:
            logger.log_metrics(resumed.row, step=resumed.step - 1)
    return found


def metrics_csv(run_dir: Path, resumed: Resumed | None) -> Curves:
    """run_dir/metrics.csv; a resumed run keeps the rows that were there at its checkpoint."""
    path = run_dir / CURVES
    if resumed is None:
        path.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
        return Curves(path)
    rows = tables.read_csv(path) if path.exists() else []
    if len(rows) < resumed.rows:
        text = "%s has %d rows, and had %d at step %d: the curves have a gap."
        log.warning(text, path, len(rows), resumed.rows, resumed.step)
    return Curves(path, rows[: resumed.rows])


def wandb_logger(config: DictConfig, run_dir: Path, resumed: bool) -> WandbLogger:
    """A run of W&B; a resumed run goes on with the one it began."""
    options, kept = config.logger, run_dir / WANDB_ID
    if not (resumed and kept.exists()):
        with record.aside(kept) as file:
            file.write(secrets.token_hex(4).encode())
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


@dataclass(frozen=True)
class Gallery:
    """What pictures of queries are made of: embeddings of the test images, and how the encoder sees them."""

    embedded: Embedded
    images: ImageSet
    preprocess: Preprocess

    def rows(self, count: int) -> dict[str, list[tuple[Image.Image, str]]]:
        """`count` random queries and as many of the worst, a picture and a caption each."""
        found, labels = gallery.neighbours(self.embedded, NEAREST), self.embedded.labels
        chosen = {
            "random": gallery.random_queries(found, count, seed=0),
            "worst": gallery.extreme_queries(found, labels, count, best=False),
        }
        return {
            name: [self.row(int(found.query[q]), found.nearest[q]) for q in queries]
            for name, queries in chosen.items()
        }

    def row(self, query: int, nearest: np.ndarray) -> tuple[Image.Image, str]:
        """A query, then its nearest images, best first: framed green where the class is right, else red."""
        labels, paths = self.embedded.labels, self.embedded.paths
        assert paths is not None
        shown = [query, *(int(position) for position in nearest if position >= 0)]
        step = SIDE + 2 * FRAME
        picture = Image.new("RGB", (step * len(shown), step), "white")
        for place, position in enumerate(shown):
            right = labels[position] == labels[query]
            colour = "#3b6ea5" if place == 0 else "#2e8b57" if right else "#c0392b"
            tile = Image.new("RGB", (step, step), colour)
            path = self.images.root / str(paths[position])
            small = thumbnail(path, self.preprocess, SIDE).resize((SIDE, SIDE))
            tile.paste(small, (FRAME, FRAME))
            picture.paste(tile, (place * step, 0))
        names = [self.images.class_names[labels[position]] for position in shown]
        return picture, f"{names[0]}; nearest: {', '.join(names[1:])}"


def results(
    loggers: Sequence[Logger], result: Mapping[str, Any], run_dir: Path, shown: Gallery
) -> None:
    """What came out: the metrics of every evaluation; for W&B the record as an artifact, and pictures."""
    values = {  # val/ is the curve's name
        f"{'chosen' if which == 'val' else which}/{name}": value
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
            pictures = shown.rows(count) if (count := result["config"]["logger"]["gallery"]) else {}
            images = {
                f"gallery/{name}": [wandb.Image(picture, caption=told) for picture, told in rows]
                for name, rows in pictures.items()
            }
            logger.experiment.log(images)
