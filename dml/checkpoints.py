"""When a run's checkpoints are written, what is in them, and from which a run goes on.

A run that is killed at any moment and started again ends with the weights, curves and record of one that
was not. What that takes is in every checkpoint, in Lightning's format, loaded with `weights_only`:

- `state_dict`, from DmlModule: encoder; loss with its parameters (proxies, class weights) and buffers;
  regulariser; cross-batch memory with its labels and its place; averaged weights (EMA, SWA).
- `optimizer_states`, `lr_schedulers`, and the scaler of float16, from Lightning.
- `loops`, `global_step`, `epoch`: Lightning's place in epoch and validation. The sampler's place follows
  from `global_step` (EpochBatches.resume_at).
- `callbacks`: which epoch was best with what score (KeepBest), how long without a gain (StopEarly), what
  diagnostics compare with (Forensics).
- `training_seconds`, `unreadable`, `nan_steps`, from DmlModule: what the record tells of all sessions.
- `curves`, from SaveLast: how many rows of metrics.csv there were, and the row still to come.

Random states are not in it, since nothing depends on them: each step begins by setting all of them from
(seed, step), and an image's augmentation has the seed of (seed, epoch, batch, slot).

last.ckpt is written after what chooses the best epoch or stops early has seen the epoch, so it knows of both.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from dml import checkpoint_file, record
from dml.checkpoint_file import Damaged
from dml.curves import Curves
from dml.errors import NoneWhole, RunError
from dml.run_directory import BEST, CHECKPOINTS, CURVES

log = logging.getLogger("dml")


# ---------------------------------------------------------------- writing


class WholeFiles(TorchCheckpointIO):
    """How Lightning writes a checkpoint: beside its place, onto the disk, then renamed.

    Its own way is to write to the machine's folder for temporary files and to move, which across file
    systems is a copy that a kill leaves half of.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Of several processes the first is asked."""
        del storage_options
        checkpoint_file.write(checkpoint, Path(path))


class SaveLast(Checkpoint):
    """Writes last.ckpt after every epoch, after every `every` steps (None: not within an epoch), and at the
    end.  Stands after all callbacks that decide something by validation.
    """

    def __init__(self, path: Path, every: int | None):
        self.path, self.every = path, every
        self.saved: int | None = None  # at which step
        self.row_to_come = False  # whether the curves lack this step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a run begins with needs no saving."""
        self.saved = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lightning logs a step after the hooks of its end."""
        self.row_to_come = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Not after an epoch's last step: Lightning would leave out that epoch's validation."""
        if self.every and trainer.global_step % self.every == 0 and not trainer.is_last_batch:
            self.save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The step before it is logged."""
        self.row_to_come = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After every epoch, also one without validation."""
        self.row_to_come = False
        self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where training ended within an epoch."""
        if self.saved != trainer.global_step:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt; what it was becomes previous.ckpt."""
        trainer.save_checkpoint(self.path)
        self.saved = trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring metrics.csv up to the checkpoint, and note in it where in the curves it stands."""
        rows = [logger.write() for logger in trainer.loggers if isinstance(logger, Curves)]
        row, options = None, cast(Any, trainer)  # which gets log_every_n_steps unannounced
        if self.row_to_come and trainer.global_step % options.log_every_n_steps == 0:
            row = {
                name: float(value)
                for name, value in trainer.logged_metrics.items()
                if not name.startswith("val") and name != "epoch"
            }
            row["epoch"] = trainer.current_epoch
        checkpoint["curves"] = {"rows": rows[0] if rows else 0, "row": row}


class KeepBest(ModelCheckpoint):
    """Lightning's, in a directory that may have moved since the checkpoint was written."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The file that was best lies where this run keeps its checkpoints."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        moved = {name: here(state_dict[name]) for name in PATHS}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(
            {**state_dict, **moved, "dirpath": self.dirpath, "best_k_models": best}
        )


PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class StopEarly(EarlyStopping):
    """Lightning's, which knows after its run was killed that it had stopped it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run killed between its last epoch and its record trains no further."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


# ---------------------------------------------------------------- going on


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from.

    step: optimizer steps before it.  rows: of metrics.csv before it.  row: the curves' values of the last
    step, which no logger has yet; None: they have them, or none were due.
    """

    path: Path
    step: int
    rows: int
    row: dict[str, float] | None


def newest_whole(paths: Sequence[Path]) -> Resumed | None:
    """The first of these checkpoints that is as it was written; None: there are none at all.

    Damaged ones before it get another name, with a warning. If none is whole all stay as they are and
    NoneWhole names them.
    """
    damaged: dict[Path, str] = {}
    for path in paths:
        try:
            content = checkpoint_file.read(path)
        except Damaged as why:
            damaged[path] = str(why)
            continue
        step = int(content["global_step"])
        for bad, why in damaged.items():
            text = "DAMAGED: %s (%s). It is kept as %s. The run goes on from step %d, in %s."
            log.warning(text, bad, why, renamed(bad).name, step, path.name)
        curves = content.get("curves", {"rows": 0, "row": None})
        return Resumed(path, step, curves["rows"], curves["row"])
    if not damaged:
        return None
    lines = [f"  {path}: {why}" for path, why in damaged.items()]
    raise NoneWhole(
        "\n".join(["no checkpoint to go on from is whole:", *lines])
        + "\nCopy one again from where it is whole; or remove the run directory to begin anew."
    )


def renamed(path: Path) -> Path:
    """Give a damaged file a name of its own beside its old one."""
    numbers = (f".{number}" if number > 1 else "" for number in count(1))
    new = next(p for n in numbers if not (p := path.with_name(f"{path.name}.damaged{n}")).exists())
    path.replace(new)
    return new


def bring_along(resumed: Resumed, run_dir: Path) -> None:
    """Copy what a checkpoint of another run directory refers to: its best weights and its curves."""
    folder = resumed.path.absolute().parent
    if folder.samefile(run_dir / CHECKPOINTS):
        return
    for old, new in (
        (folder / BEST, run_dir / CHECKPOINTS / BEST),
        (folder.parent / CURVES, run_dir / CURVES),
    ):
        if old.is_file():
            with old.open("rb") as source, record.aside(new) as file:
                shutil.copyfileobj(source, file)


def whole(path: Path) -> Mapping[str, Any]:
    """The content of the checkpoint whose weights were chosen.  Raises RunError: it is damaged."""
    try:
        return checkpoint_file.read(path)
    except Damaged as why:
        mend = (
            "Add selection.rule=last and ckpt_path=last to take the last epoch's, or train again."
            if path.name == BEST
            else "Add ckpt_path=last to go on from the checkpoint before."
        )
        raise RunError(
            f"{path} is damaged ({why}); the weights to evaluate are in it.\n{mend}"
        ) from why
