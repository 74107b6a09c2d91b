"""What a loss does to the embeddings while it trains, and an alarm when they collapse.

The callback only looks: it hooks onto the loss, takes gradients of its own without touching those of
the parameters, and leaves the random state and every mode as they were. Weights are the same with it.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.functional import normalize

from dml.evaluation import evaluate

log = logging.getLogger("dml")

DIAGNOSTICS = ("alignment", "uniformity", "rho_spectrum")
MOST = 1 << 24  # similarities in a look at single pairs: batches of up to 256


class Forensics(Callback):
    """Looks at the loss of every `every`-th batch and logs to metrics.csv, under `forensics/`:

    - loss;  gradient: mean length over the batch of the loss's gradient by an embedding.
    - active_pairs: share of the pairs (or of those in the miner's triplets) whose gradient is not 0;
      positive_gradient, negative_gradient: lengths of the gradients of single pairs, summed over the
      positive and over the negative ones.  For losses over pairs that a miner may choose.
    - between_cosine: mean cosine of images of different classes.
    - alignment, uniformity, rho_spectrum: of the batch, as in `dml.evaluation.diagnostics`.
    - proxy_use: share of proxies that were some image's nearest since the epoch began.
    - memory_drift: mean squared distance that the embeddings of one fixed batch moved since the last
      look, with a cross-batch memory, which relies on its being small (Wang et al., CVPR 2020, fig. 3).

    every: in optimizer steps.  patience: how many looks in a row must agree before an alarm, which is
    one line in the log that names the likely cause; each cause is named once.
    pairs: whether the loss takes a miner's pairs and a reference.
    """

    def __init__(self, every: int, patience: int, pairs: bool):
        self.every, self.patience, self.pairs = every, patience, pairs
        self.history: list[dict[str, float]] = []
        self.told: set[str] = set()
        self.values: dict[str, float] = {}
        self.used: Tensor | None = None
        self.probe: Tensor | None = None
        self.before: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """What later looks are compared with."""
        kept = {name: getattr(self, name) for name in ("history", "used", "probe", "before")}
        return {**kept, "told": sorted(self.told)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        for name, value in state_dict.items():
            setattr(self, name, set(value) if name == "told" else value)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen to the loss."""
        for name in ("used", "probe", "before"):  # a checkpoint was read onto the CPU
            if (kept := getattr(self, name)) is not None:
                setattr(self, name, kept.to(pl_module.device))

        def listen(loss: Any, args: Any, kwargs: Any, value: Tensor) -> None:
            if kwargs.get("reference") is not None:
                return  # a batch's second comparison, with the memory
            embeddings, labels, chosen = args
            self.note_proxies(loss, embeddings)
            if trainer.global_step % self.every == 0:
                self.look(loss, embeddings, labels, chosen, value)

        self.handle = pl_module.loss.register_forward_hook(listen, with_kwargs=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop listening."""
        self.handle.remove()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Proxy use begins anew."""
        self.used = None

    def note_proxies(self, loss: Any, embeddings: Tensor) -> None:
        """Which proxies are the nearest of an image."""
        proxies = getattr(loss, "proxies", None)
        if not isinstance(proxies, Tensor):
            return
        with torch.no_grad():
            nearest = (normalize(embeddings.float()) @ normalize(proxies.float()).T).argmax(1)
            if self.used is None:
                self.used = torch.zeros(len(proxies), dtype=torch.bool, device=nearest.device)
            self.used[nearest] = True

    def look(
        self, loss: Any, embeddings: Tensor, labels: Tensor, chosen: Any, value: Tensor
    ) -> None:
        """Measure one batch, within its forward pass."""
        self.values = {"loss": float(value.detach())}
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, embeddings, retain_graph=True)
            self.values["gradient"] = float(gradient.float().norm(dim=1).mean())
        vectors = embeddings.detach().float()
        self.values |= batch_values(vectors, labels)
        if self.pairs and len(labels) ** 3 <= MOST:
            self.values |= pair_values(loss, vectors, labels, chosen)
        if self.used is not None:
            self.values["proxy_use"] = float(self.used.float().mean())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was seen; sound the alarm."""
        if not self.values:
            return
        values, self.values = self.values, {}
        if pl_module.memory is not None:
            values |= self.drift(pl_module.encoder, batch.images)
        for logger in trainer.loggers:
            named = {f"forensics/{name}": number for name, number in values.items()}
            logger.log_metrics(named, step=trainer.global_step - 1)
        self.history = [*self.history, values][-self.patience :]
        cause = likely_cause(self.history, self.patience)
        if cause is not None and cause not in self.told:
            self.told.add(cause)
            log.warning("Step %d, alarm: %s", trainer.global_step, cause)

    @torch.no_grad()
    def drift(self, encoder: Any, images: Tensor) -> dict[str, float]:
        """How far the first batch's embeddings moved since the last look."""
        if self.probe is None:
            self.probe = images.clone()
        training = encoder.training
        encoder.eval()
        now = normalize(encoder(self.probe).float())
        encoder.train(training)
        before, self.before = self.before, now
        if before is None:
            return {}
        return {"memory_drift": float((now - before).square().sum(1).mean())}


def batch_values(vectors: Tensor, labels: Tensor) -> dict[str, float]:
    """The shape of a batch: mean cosine between classes, and the diagnostics where they are defined."""
    unit = normalize(vectors)
    different = labels[:, None] != labels
    found = {}
    if different.any():
        found["between_cosine"] = float((unit @ unit.T)[different].mean())
    if vectors.isfinite().all() and (different.sum(1) < len(labels) - 1).any():
        found |= evaluate(vectors, labels, metrics=DIAGNOSTICS, backend="torch")
    return found


def pair_values(loss: Any, vectors: Tensor, labels: Tensor, chosen: Any) -> dict[str, float]:
    """Share of pairs with a gradient, and the summed lengths of the positive and negative ones."""
    count = len(labels)
    if chosen is None:
        same = labels[:, None] == labels
        negatives = ~same
        same.fill_diagonal_(False)
        chosen = (*same.nonzero().T, *negatives.nonzero().T)
    if not all(map(len, chosen)):
        return {"active_pairs": 0.0}
    lengths = pair_gradients(loss, vectors, labels, chosen).norm(dim=2).flatten()
    last = (2, 3) if len(chosen) == 4 else (0, 2)
    positive, negative = (
        lengths[(chosen[anchor] * count + chosen[other]).unique()]
        for anchor, other in ((0, 1), last)
    )
    active = (positive > 0).sum() + (negative > 0).sum()
    return {
        "active_pairs": float(active / (len(positive) + len(negative))),
        "positive_gradient": float(positive.sum()),
        "negative_gradient": float(negative.sum()),
    }


def pair_gradients(loss: Any, vectors: Tensor, labels: Tensor, chosen: Sequence[Tensor]) -> Tensor:
    """Gradient of the loss by j in its part as the partner of a, for all pairs (a, j): [n, n, d].

    Each anchor is given a copy of the batch of its own to be compared with, so these are exact.
    chosen: pairs (a, p, a, n) or triplets (a, p, n).
    """
    count = len(labels)
    moved = [chosen[0], chosen[0] * count + chosen[1]]
    if len(chosen) == 4:
        moved += [chosen[2], chosen[2] * count + chosen[3]]
    else:
        moved += [chosen[0] * count + chosen[2]]
    with torch.enable_grad(), torch.random.fork_rng():
        copies = vectors.repeat(count, 1).requires_grad_()
        # `forward` itself: a call would come back to the hook that asked
        value = loss.forward(
            *(vectors, labels, tuple(moved)),
            reference=copies,
            reference_labels=labels.repeat(count),
        )
        (gradient,) = torch.autograd.grad(value, copies)
    return gradient.unflatten(0, (count, count))


def likely_cause(history: Sequence[Mapping[str, float]], patience: int) -> str | None:
    """What is probably wrong, from the last `patience` looks; None: nothing that shows.

    history: what `Forensics` logs, oldest first.
    """
    last = history[-1]
    if not all(math.isfinite(value) for value in last.values()):
        return (
            "numbers that are not finite. The learning rate is probably too high: lower optimizer.lr and "
            "optimizer.head_lr, or add schedule.warmup_steps=100 or trainer.gradient_clip_val=1."
        )
    if len(history) < patience:
        return None

    def throughout(name: str, low: float = -math.inf, high: float = math.inf) -> bool:
        return all(low <= look.get(name, math.nan) <= high for look in history)

    if throughout("between_cosine", low=0.98):
        return (
            "collapse: images of different classes are at a cosine of "
            f"{last['between_cosine']:.3f}. Either the learning rate is too high, or the loss pulls on "
            "the hardest pairs from the start: lower optimizer.lr, or take a milder miner."
        )
    if throughout("active_pairs", high=0.0):
        return (
            f"no active pair in {patience} looks: nothing is learned any more. The margin is met everywhere "
            "or the miner finds nothing: raise loss.margin, take a harder miner, or stop here."
        )
    losses = [look["loss"] for look in history]
    rises = all(after > before for before, after in pairwise(losses))
    if rises and losses[-1] > 3 * losses[0] > 0:
        return (
            f"the loss rises from look to look, {losses[0]:.3g} to {losses[-1]:.3g}: the learning rate "
            "is probably too high. Lower optimizer.lr and optimizer.head_lr."
        )
    if throughout("active_pairs", low=1.0) and min(losses) > 0.99 * losses[0]:
        return (
            f"every pair is active in {patience} looks and the loss does not fall: the margin is never met. "
            "Lower loss.margin, or raise optimizer.lr if it is very low."
        )
    return None
