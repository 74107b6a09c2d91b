"""What happens beside training: a checkpoint when asked to stop, one line an epoch where no bar can be."""

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import STEP_OUTPUT

from dml.errors import RunError

log = logging.getLogger("dml")


class Interrupted(Exception):
    """Training stopped on a signal, after a checkpoint was saved."""

    def __init__(self, signal_number: int, checkpoint: Path):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number, self.checkpoint = signal_number, checkpoint


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM: finish the step, save `last.ckpt`, raise Interrupted.

    A second signal stops at once, leaving the checkpoint before.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.received: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals within this block."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def receive(number: int, frame: FrameType | None) -> None:
            if self.received is not None:
                signal.signal(number, before[signal.Signals(number)])
                raise KeyboardInterrupt
            self.received = number
            log.info("Stopping after this step; once more stops at once.")

        for number in before:
            signal.signal(number, receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and stop where a resumed run can take up."""
        if self.received is not None:
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(self.received, self.checkpoint)


class EpochLines(Callback):
    """One line an epoch in the log, and on the terminal where there is no progress bar."""

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


class FiniteLoss(Callback):
    """Stop when the loss is not finite, naming the step: what is learnt after it is worthless."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the step's loss."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor) and not math.isfinite(loss.item()):
            raise RunError(
                f"the loss is {loss.item()} at step {trainer.global_step} "
                f"(epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}).\n"
                "Lower optimizer.lr and optimizer.head_lr, add schedule.warmup_steps=100 or "
                "trainer.gradient_clip_val=1."
            )
