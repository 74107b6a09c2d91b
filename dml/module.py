"""The LightningModule: encoder -> miner -> loss; collects embeddings and evaluates them.

A memory adds columns to the loss, a regulariser a term.
"""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dml.data.images import BadImages, Batch
from dml.encoder import Encoder
from dml.errors import RunError
from dml.evaluation import evaluate
from dml.memory import CrossBatchMemory


class DmlModule(pl.LightningModule):
    """Trains an encoder with a loss.

    loss: (embeddings, labels[, indices_tuple]) -> scalar.  miner: (embeddings, labels) -> indices_tuple,
    or None.  memory: what the batch is compared with besides itself.  regularizer: (vectors before
    normalisation, labels) -> scalar, added to the loss.  optimizer: module -> torch optimizer.
    schedule: total steps -> factor by step.  evaluation: keyword arguments of `dml.evaluation.evaluate`.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: nn.Module,
        miner: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None,
        optimizer: Callable[["DmlModule"], Optimizer],
        schedule: Callable[[int], Callable[[int], float]],
        evaluation: dict[str, Any],
        bad_images: BadImages,
        seed: int,
        memory: CrossBatchMemory | None = None,
        regularizer: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder, self.loss, self.miner = encoder, loss, miner
        self.memory, self.regularizer = memory, regularizer
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.evaluation, self.bad_images, self.seed = evaluation, bad_images, seed
        self.validation: list[tuple[Tensor, Tensor, Tensor]] = []
        self.training_seconds = 0.0

    def on_fit_start(self) -> None:
        """Start the clock of training time."""
        self.clock = time.monotonic()

    def on_train_start(self) -> None:
        """A run resumed within an epoch begins without `on_train_epoch_start`."""
        self.freeze_or_release()

    def on_train_epoch_start(self) -> None:
        """Release the trunk when its epochs of rest are over."""
        self.freeze_or_release()

    def freeze_or_release(self) -> None:
        """Freeze the trunk for its first `freeze_epochs`, and let every layer take its mode."""
        trunk = self.encoder.trunk
        trunk.frozen = self.current_epoch < trunk.freeze_epochs
        self.encoder.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make the step's randomness (dropout, sampling miners) a function of seed and step alone.

        A resumed run and one whose validation drew random numbers then go on as if nothing had been.
        """
        seed = int(np.random.SeedSequence((self.seed, self.global_step)).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (foreign code draws from the global state)
        random.seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """One batch to one loss."""
        self.bad_images.check(batch)
        if len(batch.labels) == 0:
            return None
        try:
            vectors = self.encoder.project(self.encoder.pooled(batch.images))
            embeddings = self.encoder.scale(vectors)
            loss = self.compare(embeddings, batch.labels)
            if self.memory is not None and self.global_step >= self.memory.start_step:
                columns = self.memory.enqueue(embeddings, batch.labels)
                remembered = self.compare(embeddings, batch.labels, **columns)
                loss = loss + self.memory.weight * remembered
            if self.regularizer is not None:
                loss = loss + self.regularizer(vectors, batch.labels)
        except ValueError as error:  # a loss refuses what would not be finite
            raise self.diverged(f"batch {batch_idx + 1}: {error}") from error
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def compare(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
        self_slots: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch against itself or against a reference, over what the miner chooses."""
        columns: dict[str, Any] = {}
        if reference is not None:
            columns = {"reference": reference, "reference_labels": reference_labels}
        chosen = None if self.miner is None else self.miner(embeddings, labels, **columns)
        if reference is not None:
            columns["self_slots"] = self_slots
        return self.loss(embeddings, labels, chosen, **columns)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Embed in float32 whatever the precision of training, so that metrics do not depend on it."""
        self.bad_images.check(batch)
        if len(batch.labels) == 0:
            return
        with torch.autocast(batch.images.device.type, enabled=False):
            embeddings = self.encoder(batch.images)
        self.validation.append((embeddings.cpu(), batch.labels.cpu(), batch.ids.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Metrics on the validation classes."""
        parts, self.validation = self.validation, []
        if not parts:
            raise RunError("no validation image could be read.")
        embeddings, labels, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        try:
            metrics = evaluate(embeddings, labels, query_ids=ids, **self.evaluation)
        except ValueError as error:
            raise self.diverged(f"validation: {error}") from error
        for name, value in metrics.items():
            self.log(f"val/{name}", value, prog_bar=name == "recall@1")

    def diverged(self, what: str) -> RunError:
        """The error of a run whose embeddings or loss are no numbers any more."""
        return RunError(
            f"step {self.global_step}, epoch {self.current_epoch + 1}, {what}\n"
            "If training diverged: lower optimizer.lr and optimizer.head_lr, add "
            "schedule.warmup_steps=100 or trainer.gradient_clip_val=1."
        )

    def configure_optimizers(self) -> Any:
        """Optimizer over all parameter groups, its rate set at every step."""
        optimizer = self.make_optimizer(self)
        factor = self.make_schedule(int(self.trainer.estimated_stepping_batches))
        scheduler = LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the time spent and the images skipped, so that a resumed run reports all of it."""
        checkpoint["training_seconds"] = self.training_seconds + time.monotonic() - self.clock
        checkpoint["unreadable"] = dict(self.bad_images.skipped)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self.training_seconds = checkpoint["training_seconds"]
        self.bad_images.skipped.update(checkpoint["unreadable"])
