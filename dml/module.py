"""The LightningModule: encoder -> miner -> loss; collects embeddings and evaluates them.

A memory adds columns to the loss, a regulariser a term.
"""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dml import distributed
from dml.averaging import AveragedEncoder, Share
from dml.chunks import in_chunks
from dml.data.images import BadImages, Batch
from dml.encoder import Encoder
from dml.errors import NotFinite, RunError
from dml.evaluation import evaluate
from dml.faults import MEND, NanSteps, check_weights, gradient_norm, moving_buffers
from dml.losses.pairs import check_rows
from dml.memory import CrossBatchMemory
from dml.sam import kept, uphill


class DmlModule(pl.LightningModule):
    """Trains an encoder with a loss.

    loss: (embeddings, labels[, indices_tuple]) -> scalar.  miner: (embeddings, labels) -> indices_tuple,
    or None.  memory: what the batch is compared with besides itself.  regularizer: (vectors before
    normalisation, labels) -> scalar, added to the loss.  optimizer: module -> torch optimizer.
    schedule: total steps -> factor by step.  evaluation: keyword arguments of `dml.evaluation.evaluate`.
    batch_chunks: into how many parts a batch is cut to be embedded (dml/chunks.py).  compiled: whether
    training embeds through torch.compile.  sam_rho: radius of sharpness-aware minimisation (dml/sam.py).
    gathers: whether each of several processes compares the whole batch, or its own part alone
    (dml/distributed.py).  averaging: of the weights (dml/averaging.py); the averages are then what `val/`
    metrics are of, and the weights of now what `val_plain/` ones are.  nan_steps: what is done about steps
    whose loss or gradient is not finite (dml/faults.py).
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
        *,
        batch_chunks: int = 1,
        compiled: bool = False,
        sam_rho: float | None = None,
        averaging: Share | None = None,
        gathers: bool = True,
        nan_steps: NanSteps | None = None,
    ):
        super().__init__()
        self.encoder, self.loss, self.miner = encoder, loss, miner
        self.memory, self.regularizer = memory, regularizer
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.evaluation, self.bad_images, self.seed = evaluation, bad_images, seed
        self.validation: list[tuple[Tensor, ...]] = []  # labels, ids, embeddings by each encoder
        self.training_seconds = 0.0
        self.batch_chunks, self.sam_rho = batch_chunks, sam_rho
        self.averaged = None if averaging is None else AveragedEncoder(encoder, averaging)
        # Training alone: what is evaluated is what is exported. No module: names of weights stay.
        self.train_vectors = torch.compile(encoder.vectors) if compiled else encoder.vectors
        self.gathers = gathers
        self.second_pass = False
        self.columns: dict[str, Tensor] = {}
        self.no_image = False  # in this step's batch, of all processes together
        self.nan_steps = nan_steps or NanSteps()
        # This step: why its loss refused it, and whether it was left out, since it was not finite.
        self.refused, self.skipped = "", False
        self.buffers_before: list[tuple[Tensor, Tensor]] = []

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
        self.reseed()
        self.refused, self.skipped = "", False
        if self.nan_steps.skips:
            moving = moving_buffers(self.encoder, self.loss, self.regularizer)
            self.buffers_before = [(buffer, buffer.clone()) for buffer in moving]

    def reseed(self, rank: int = 0) -> None:
        """Set all random states to those of this step, for one of several processes."""
        state = np.random.SeedSequence((self.seed, self.global_step, rank))
        seed = int(state.generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (foreign code draws from the global state)
        random.seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """One batch, or a process's part of one, to one loss."""
        self.bad_images.check(batch)
        rows = distributed.of_all(len(batch.labels))
        self.no_image = sum(rows) == 0
        if self.no_image and len(rows) == 1:
            return None
        loss, shown = self.loss_of(batch, rows)
        self.shown = shown.detach()
        if not self.second_pass:
            self.log("train/loss", shown, prog_bar=True, batch_size=sum(rows))
            trainer: Any = self.trainer  # which gets log_every_n_steps unannounced
            if (self.global_step + 1) % trainer.log_every_n_steps == 0:
                self.log_dict(self.rates())  # only where Lightning writes a row
        return loss

    def rates(self) -> dict[str, float]:
        """Learning rate of this step, as `lr/trunk`, `lr/head` ..."""
        groups = self.trainer.optimizers[0].param_groups
        return {f"lr/{group['name'].removesuffix(' vectors')}": group["lr"] for group in groups}

    def loss_of(self, batch: Batch, rows: list[int]) -> tuple[Tensor, Tensor]:
        """(what to differentiate, the loss of the whole batch); rows: images that each process has of it."""
        images, labels = batch.images, batch.labels
        if self.no_image:  # nor may BatchNorm count a batch of none
            loss = 0 * next(self.encoder.head.parameters()).sum()
            return loss, loss
        if len(rows) > 1:
            self.reseed(distributed.rank())  # each process drops out units of its own
        if len(labels) == 0:  # the other processes wait for this one in every BatchNorm
            side = self.encoder.preprocess.image_size
            images = images.new_zeros(0, 3, side, side)
        vectors = in_chunks(self.train_vectors, images, self.batch_chunks)
        if not self.second_pass:
            self.ids, self.vectors = batch.ids, vectors.detach()
        if len(rows) > 1:
            self.reseed()  # and all of them mine alike
        if self.gathers:
            gathered = distributed.gather(vectors, rows)
            loss = self.objective_or_nan(gathered, distributed.gather(labels, rows))
            return loss, loss
        loss = self.objective_or_nan(vectors, labels) if len(labels) else 0 * vectors.sum()
        loss = loss * distributed.share_of_mean(rows)
        return loss, distributed.mean_of_all(loss)

    def objective_or_nan(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The objective, or NaN where a loss refuses its input.

        Each of several processes then goes on to the end of its backward pass, and all find the same.
        """
        try:
            return self.objective(vectors, labels)
        except NotFinite as error:
            self.refused = str(error)
            return vectors.new_tensor(torch.nan, requires_grad=True) + 0 * vectors.sum()
        except ValueError as error:
            raise RunError(f"{self.place()}: {error}") from error

    def objective(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, with what memory and regulariser add to it."""
        embeddings = self.encoder.scale(vectors)
        loss = self.compare(embeddings, labels)
        if self.memory is not None and self.global_step >= self.memory.start_step:
            if not self.second_pass:
                check_rows(embeddings.detach(), "embeddings")  # no loss need have looked at them
                self.columns = self.memory.enqueue(embeddings, labels)
            remembered = self.compare(embeddings, labels, **self.columns)
            loss = loss + self.memory.weight * remembered
        if self.regularizer is not None:
            loss = loss + self.regularizer(vectors, labels)
        return loss

    def on_after_backward(self) -> None:
        """A batch without an image moves no weight: not by momentum, either."""
        if self.no_image:
            self.zero_grad()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """A step that is not finite moves nothing, or ends the run.

        Behind the backward pass, where every process has the same gradient, and by one question, for which
        a GPU waits once.
        """
        if self.no_image:
            return
        groups = optimizer.param_groups
        norm = gradient_norm((p for group in groups for p in group["params"]), self.shown)
        if not self.refused and torch.isfinite(self.shown + 0 * norm):
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if not self.refused and self.shown.isfinite() and scaler and scaler.get_scale() > 1:
            return  # the scaler has scaled too far; it leaves the step out and scales less
        values = f"the loss is {float(self.shown):.4g}, the gradient's norm {float(norm):.4g}"
        what = self.refused or values
        rates = ", ".join(f"{name[3:]} {rate:.3g}" for name, rate in self.rates().items())
        told = f"{self.place()}: {what} (learning rates {rates})."
        self.nan_steps.met(told, self.global_step + 1, self.ids, self.vectors)
        self.skipped = True
        self.zero_grad()  # not by momentum or weight decay, either
        with torch.no_grad():
            for buffer, before in self.buffers_before:
                buffer.copy_(before)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step, by the gradient here or the one uphill; then the average of the weights."""
        closure = optimizer_closure
        if self.sam_rho is not None and closure is not None:
            closure = partial(self.pass_twice, optimizer, closure, self.sam_rho)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        # EMA is over steps that moved something, SWA over the ends of epochs.
        if self.averaged is not None and (self.trainer.is_last_batch or not self.skipped):
            done, per_epoch = self.global_step + 1, int(self.trainer.num_training_batches)
            self.averaged.update(self.encoder, done, per_epoch, self.total_steps)

    def pass_twice(self, optimizer: Any, closure: Callable[[], Any], rho: float) -> Any:
        """Both passes of SAM, over the same batch, dropout and memory; only the first counts for buffers."""
        loss = closure()
        if loss is None:  # no image of the batch could be read
            return loss

        def buffers() -> list[Tensor]:
            own = (self.encoder, self.loss, self.regularizer)
            return [b for module in own if module is not None for b in module.buffers()]

        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.reseed()
        self.second_pass = True
        try:
            with uphill(parameters, rho), kept(buffers):
                return closure()
        finally:
            self.second_pass = False

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
            evaluated = [self.encoder] if self.averaged is None else [self.averaged, self.encoder]
            embeddings = [encoder(batch.images).float().cpu() for encoder in evaluated]
        self.validation.append((batch.labels.cpu(), batch.ids.cpu(), *embeddings))

    def on_validation_epoch_end(self) -> None:
        """Metrics on the validation classes, the first process's for all."""
        parts, self.validation = self.validation, []
        none = torch.empty(0, dtype=torch.int64)
        both = 1 if self.averaged is None else 2
        parts.append((none, none, *[torch.empty(0, self.encoder.dim)] * both))
        labels, ids, *embeddings = (torch.cat(part) for part in zip(*parts, strict=True))
        ids, labels, *embeddings = distributed.collected(ids, labels, *embeddings)
        metrics = self.measured(labels, ids, embeddings) if distributed.is_first() else {}
        for name, value in distributed.from_first(metrics).items():
            self.log(name, value, prog_bar=name == "val/recall@1")

    def measured(
        self, labels: Tensor, ids: Tensor, embeddings: Sequence[Tensor]
    ) -> dict[str, float]:
        """`val/` metrics of the first embeddings, `val_plain/` ones of the second, if there are."""
        if len(ids) == 0:
            raise RunError("no validation image could be read.")
        found = {}
        for split, vectors in zip(("val", "val_plain"), embeddings, strict=False):
            try:
                metrics = evaluate(vectors, labels, query_ids=ids, **self.evaluation)
            except ValueError as error:
                raise self.diverged(f"validation: {error}") from error
            found |= {f"{split}/{name}": value for name, value in metrics.items()}
        return found

    def diverged(self, what: str) -> RunError:
        """The error of a run whose embeddings are no numbers any more."""
        return RunError(f"{self.place()}, {what}\n{MEND}")

    def place(self) -> str:
        """Step, from 1, and epoch, for messages."""
        step = self.global_step + (0 if self.trainer.validating else 1)
        return f"step {step}, epoch {self.current_epoch + 1}"

    def configure_optimizers(self) -> Any:
        """Optimizer over all parameter groups, its rate set at every step."""
        optimizer = self.make_optimizer(self)
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        factor = self.make_schedule(self.total_steps)
        scheduler = LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the time spent and what was skipped, so that a resumed run reports all of it.

        Raises RunError for weights that are not finite: they overwrite no checkpoint.
        """
        parameters = (name for name, _ in self.named_parameters())
        where = f"step {self.global_step}, epoch {self.current_epoch + 1}"
        check_weights(checkpoint["state_dict"], parameters, where)
        checkpoint["training_seconds"] = self.training_seconds + time.monotonic() - self.clock
        checkpoint["unreadable"] = distributed.merged(dict(self.bad_images.skipped))
        checkpoint["nan_steps"] = list(self.nan_steps.steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self.training_seconds = checkpoint["training_seconds"]
        self.bad_images.skipped.update(checkpoint["unreadable"])
        self.nan_steps.steps = list(checkpoint.get("nan_steps", []))  # earlier versions have none
