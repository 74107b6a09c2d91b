"""What happens beside training: a checkpoint when asked to stop, one line an epoch where no bar can be."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import STEP_OUTPUT

from dml import distributed
from dml.errors import Interrupted
from dml.processes import SIGNALS

log = logging.getLogger("dml")


class StopOnSignal(Callback):
    """Ctrl-C, SIGTERM and SIGUSR1: finish the step, save, raise Interrupted.

    Within an epoch's validation, or at its last step, what is saved is the state before that validation,
    which the resumed run does again from its beginning. Ctrl-C after any of them stops at once, leaving
    the checkpoint before; SIGTERM, which systems send more than once, does not.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.received: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals within this block."""
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Make the signals ours."""
        for number in self.before:
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; at a later Ctrl-C end without saving."""
        if self.received is None:
            self.received = number
            name = signal.Signals(number).name
            log.info("%s: stopping after this step; Ctrl-C (once more) stops at once.", name)
        elif number == signal.SIGINT:
            raise Interrupted(number, at_once=True)

    def agreed(self) -> int | None:
        """The signal that any of the processes has received by now: they stop after the same step."""
        self.received = distributed.largest(self.received or 0) or None
        return self.received

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back from Lightning, whose handlers end the run with exit code 0."""
        self.listen()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and stop where a resumed run can take up.

        Not after the last step of an epoch: Lightning would leave out that epoch's validation when it
        resumes, and with it perhaps the best weights. `stop_in_validation` is next.
        """
        received = self.agreed()
        if received is not None and not trainer.is_last_batch:
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(received, self.checkpoint)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the batches of a resumed validation from 0, as Lightning does those of any other."""
        progress = validation_progress(trainer)
        progress.total.load_state_dict(progress.current.state_dict())

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Before every batch."""
        self.stop_in_validation(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """And before the embeddings are compared, which may take long."""
        self.stop_in_validation(trainer)

    def stop_in_validation(self, trainer: pl.Trainer) -> None:
        """Save the state in which Lightning begins this validation, and stop."""
        received = self.agreed()
        if received is None:
            return
        progress = validation_progress(trainer)
        progress.reset()
        for count in (progress.total, progress.current):
            # By these Lightning knows a run that was broken off in its first validation batch.
            count.load_state_dict({"ready": 1, "started": 1, "processed": 0, "completed": 0})
        trainer.save_checkpoint(self.checkpoint)
        raise Interrupted(received, self.checkpoint)


def validation_progress(trainer: pl.Trainer) -> Any:
    """Lightning's count of the validation batches of an epoch."""
    return trainer.fit_loop.epoch_loop.val_loop.batch_progress


class EpochLines(Callback):
    """One line an epoch in the log, and on the terminal where there is no progress bar."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run resumed within an epoch begins without `on_train_epoch_start`."""
        self.start = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Loss of the last step, and validation Recall@1 where there is validation."""
        values = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        for label, key in (("loss", "train/loss"), ("val recall@1", "val/recall@1")):
            if key in values:
                parts.append(f"{label} {float(values[key]):.4f}")
        parts.append(f"{time.monotonic() - self.start:.1f} s")
        log.info("  ".join(parts), extra={"quiet": trainer.progress_bar_callback is not None})
