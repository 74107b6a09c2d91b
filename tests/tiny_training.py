"""A few steps of training on random images, through Lightning, for tests of how training is done."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from dml.data.images import BadImages, Batch
from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.losses import Contrastive
from dml.module import DmlModule
from dml.optim import constant, parameter_groups

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def batches(count: int, seed: int = 0) -> list[Batch]:
    """Batches of two images of each of three classes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LABELS), 3, 32, 32)
    return [
        Batch(
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
            LABELS,
            number * len(LABELS) + torch.arange(len(LABELS)),
            [],
        )
        for number in range(count)
    ]


def make_module(
    loss: nn.Module | None = None,
    freeze_bn: bool = True,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    lr: float = 0.01,
    drop_rate: float = 0.0,
    **more: Any,
) -> DmlModule:
    """A module over timm's smallest ResNet, the same at every call."""
    torch.manual_seed(0)
    trunk = Trunk("test_resnet", freeze_bn=freeze_bn, kwargs={"drop_path_rate": drop_rate})
    encoder = Encoder(trunk, Head(pooled_features(trunk, "avg"), 8))
    return DmlModule(
        encoder,
        Contrastive() if loss is None else loss,
        more.pop("miner", None),
        optimizer=lambda m: optimizer(
            parameter_groups(m.encoder, m.loss, lr=lr, head_lr=lr, weight_decay=0), lr=lr
        ),
        schedule=lambda total: constant(total, warmup_steps=2),
        evaluation={"metrics": ("recall@1",)},
        bad_images=BadImages("error"),
        seed=0,
        **more,
    )


def fit(
    module: DmlModule,
    data: Sequence[Batch],
    epochs: int = 1,
    checkpoint: Path | None = None,
    validation: Sequence[Batch] | None = None,
    **options: Any,
) -> pl.Trainer:
    """Train on the CPU, from a checkpoint where one is given."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=True,
        use_distributed_sampler=False,
        **options,
    )
    loaders = [
        None if d is None else DataLoader(list(d), batch_size=None) for d in (data, validation)
    ]
    trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer


class SaveAfterEpoch(pl.Callback):
    """Writes a checkpoint at the end of one epoch and trains on."""

    def __init__(self, epoch: int, path: Path):
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def assert_resumes(make: Callable[[], DmlModule], folder: Path, **options: Any) -> None:
    """10 steps and another 10 from their checkpoint end with the weights and buffers of 20, bit for bit."""
    whole, second, half = make(), make(), folder / "half.ckpt"
    data = batches(5)
    fit(whole, data, epochs=4, callbacks=[SaveAfterEpoch(1, half)], **options)
    fit(second, data, epochs=4, checkpoint=half, **options)
    expected, found = learned(whole), learned(second)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    start = torch.load(half, weights_only=True)
    assert start["global_step"] == 10
    assert not torch.equal(
        start["state_dict"]["encoder.head.linear.weight"], found["encoder.head.linear.weight"]
    )


def learned(module: DmlModule) -> dict[str, torch.Tensor]:
    """All weights and buffers, copied."""
    return {name: value.clone() for name, value in module.state_dict().items()}
