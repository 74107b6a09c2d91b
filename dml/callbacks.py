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

log = logging.getLogger("dml")


class Interrupted(Exception):
    """Training stopped on a signal, after a checkpoint was saved."""

    def __init__(self, signal_number: int, checkpoint: Path):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number, self.checkpoint = signal_number, checkpoint


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM: finish the step (an epoch's last with its validation), save, raise Interrupted.

    A second signal stops at once, leaving the checkpoint before.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.received: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals within this block."""
        self.before = {
            number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
        }
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
        """Remember the first signal; at the second, do what would have been done without us."""
        if self.received is not None:
            for other, handler in self.before.items():
                signal.signal(other, handler)
            raise KeyboardInterrupt
        self.received = number
        log.info("Stopping after this step; once more stops at once.")

    def agreed(self) -> int | None:
        """The signal that any of the processes has received by now: they stop after the same step."""
        self.received = distributed.largest(self.received or 0) or None
        return self.received

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, whose handler ends the run with exit code 0."""
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
        resumes, and with it perhaps the best weights.
        """
        received = self.agreed()
        if received is not None and not trainer.is_last_batch:
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(received, self.checkpoint)


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
