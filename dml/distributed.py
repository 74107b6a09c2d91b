"""Several processes that train one model, and compute what one would.

A global batch is cut into equal parts, in the order of ranks. Each process embeds its part. Then either

- `gather` gives every process all embeddings, and each computes the loss of the whole batch; or
- the loss is a mean of one value per image, and each computes it of its own part (`share_of_mean`).

Both leave on each process a gradient such that DistributedDataParallel's average over processes is the
gradient of one process with the whole batch. dml/sync_batchnorm.py does its part for layers that normalise
by the batch. Alone, every function here returns what it was given.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor
from torch.autograd.function import once_differentiable

from dml.errors import ConfigurationError, Problem, RunError
from dml.processes import STORE, Place, number_of, place

log = logging.getLogger("dml")
Thing = TypeVar("Thing")

FAILURE = "failure"  # key of the store: which process failed first, and of what


# ---------------------------------------------------------------- joining and leaving


@contextmanager
def joined(config: DictConfig) -> Iterator[None]:
    """Be one of the processes of a run within this block.

    The first process that fails raises what it failed of; the others, which then fail for want of it,
    exit with code 1 and without a word.

    Raises ConfigurationError: trainer.devices asks for processes that nobody started, or for GPUs that
    are not there.  RunError: another process never came, or has gone without a word.
    """
    here = place()
    number = number_of(config.trainer.devices) or here.local_world_size
    if number != here.local_world_size:
        what = (
            f"{number} processes must be started by dml-train or torchrun; within this one "
            "(dml-train study=..., a program of your own) there is 1. Add trainer.devices=1."
        )
        raise ConfigurationError([Problem(f"trainer.devices={config.trainer.devices}", what)])
    if here.world_size == 1:
        yield
        return
    if here.started_by == "srun":
        speak_torchrun(here)
    join(config, here)
    try:
        yield
    except Exception as error:
        if first := failed_before(here, error):
            rank, what = first
            text = "Error: process %d of %d failed: %s"
            log.error(text, rank, here.world_size, what, extra={"quiet": True})
            raise SystemExit(1) from error
        speak(here)
        if of_another(error):
            log.info("%s", error, extra={"quiet": True})
            raise RunError(
                f"another of the {here.world_size} processes has gone, or was silent for "
                f"trainer.timeout={config.trainer.timeout} seconds.\nIf it said nothing itself it was "
                "killed (out of memory?), or its machine has failed."
            ) from error
        raise  # and leave without saying goodbye: the others cannot answer
    dist.destroy_process_group()


def speak_torchrun(here: Place) -> None:
    """Put into torchrun's variables what Slurm's say."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    told = os.environ
    first = SLURMEnvironment.resolve_root_node_address(told["SLURM_STEP_NODELIST"])
    told.setdefault("MASTER_ADDR", first)
    # One for each step of the cluster's jobs, so that two on a machine do not meet.
    port = 15000 + (int(told["SLURM_JOB_ID"]) * 8 + int(told["SLURM_STEP_ID"])) % 16000
    told.setdefault("MASTER_PORT", str(port))
    told.update(
        RANK=str(here.rank),
        WORLD_SIZE=str(here.world_size),
        LOCAL_RANK=str(here.local_rank),
        LOCAL_WORLD_SIZE=str(here.local_world_size),
        GROUP_RANK=told["SLURM_NODEID"],
    )


def join(config: DictConfig, here: Place) -> None:
    """Find the others.  Tensors on GPUs travel by NCCL, those of the CPU by Gloo.

    Raises ConfigurationError, RunError: see `joined`.
    """
    backend, devices = "gloo", config.trainer.devices
    if on_gpus(config):
        device = here.local_rank if isinstance(devices, int | str) else devices[here.local_rank]
        found = torch.cuda.device_count()
        if device >= found:
            what = f"process {here.rank} needs GPU {device}, and this machine has {found}."
            raise ConfigurationError([Problem(f"trainer.devices={devices}", what)])
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    meeting = f"file://{os.environ[STORE]}" if STORE in os.environ else "env://"
    seconds = config.trainer.timeout
    try:
        dist.init_process_group(
            backend,
            meeting,
            rank=here.rank,
            world_size=here.world_size,
            timeout=timedelta(seconds=seconds),
        )
    except RuntimeError as error:
        raise RunError(
            f"the {here.world_size} processes of the run did not find each other within "
            f"trainer.timeout={seconds} seconds ({error}).\nIs one missing, or is the first machine's "
            "address (MASTER_ADDR, MASTER_PORT) out of reach?"
        ) from error


def on_gpus(config: DictConfig) -> bool:
    """Whether the processes train on GPUs, one each."""
    return config.trainer.accelerator != "cpu" and torch.cuda.is_available()


def failed_before(here: Place, error: Exception) -> tuple[int, str] | None:
    """Which process failed before this one, and of what; None: this one is the first."""
    own = json.dumps([here.rank, f"{type(error).__name__}: {error}"])
    store = dist.distributed_c10d._get_default_store()
    try:
        first = store.compare_set(FAILURE, "", own)
    except dist.DistError:  # the store went down with the process that kept it
        return None
    rank, what = json.loads(first)
    return None if rank == here.rank else (rank, what)


def of_another(error: Exception) -> bool:
    """Whether an error says that another process does not answer (Gloo's have no class of their own)."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def speak(here: Place) -> None:
    """Let a process that was silent be heard: it has failed."""
    for handler in log.handlers:
        if here.rank and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
            prefix = f"process {here.rank} of {here.world_size}: "
            handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))


# ---------------------------------------------------------------- who and what


def world_size() -> int:
    """Processes that have joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


@contextmanager
def first_here() -> Iterator[None]:
    """Let one process per machine do this block before the others: it makes files that they then find."""
    waits = world_size() > 1 and place().local_rank > 0
    if waits:
        dist.barrier()
    yield
    if world_size() > 1 and not waits:
        dist.barrier()


def from_first(thing: Thing) -> Thing:
    """What the first process has."""
    if world_size() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def largest(number: int) -> int:
    """The largest of all processes' numbers."""
    return max(of_all(number))


def of_all(number: int) -> list[int]:
    """Every process's number, in the order of ranks."""
    if world_size() == 1:
        return [number]
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(found, torch.tensor([number]))
    return [int(each) for each in found]


def merged(found: dict[str, str]) -> dict[str, str]:
    """Every process's entries together, those of the first ranks first."""
    if world_size() == 1:
        return found
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


# ---------------------------------------------------------------- one loss


class _Gather(torch.autograd.Function):
    """All processes' rows; backwards, the gradient of this process's own, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: Sequence[int]) -> Tensor:
        ctx.start = sum(rows[: rank()])
        ctx.stop = ctx.start + len(own)
        padded = own.new_zeros(max(rows), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return gradient[ctx.start : ctx.stop] * world_size(), None


def gather(own: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows of all processes in the order of ranks, [sum(rows), ...], with gradient.

    own: [rows[rank], ...].  rows: `of_all(len(own))`.

    Every process is to compute the same scalar of the result, the loss L of the global batch. Process r
    then gets by its weights w the sum over its own rows i of W dL/de_i de_i/dw, W processes; the average
    over processes is dL/dw. A parameter of the loss itself has all of dL/dp on each process, and the
    average is that.
    """
    return own if world_size() == 1 else _Gather.apply(own, rows)


def share_of_mean(rows: Sequence[int]) -> float:
    """Factor of the mean over this process's own rows, for the average over processes to be the mean of all.

    rows: `of_all` processes' numbers of rows.
    """
    return rows[rank()] * world_size() / sum(rows)


def mean_of_all(value: Tensor) -> Tensor:
    """Average over processes, without gradient."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


# ---------------------------------------------------------------- one evaluation


def share_of(count: int) -> np.ndarray:
    """The positions among `count` images that this process embeds, int64 [ceil(count / W)].

    In the order of ranks they are 0..count-1, and then the first again until all processes have as many:
    `collected` drops these.
    """
    each = -(-count // world_size())
    return np.arange(rank() * each, (rank() + 1) * each) % max(count, 1)


def collected(ids: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """(ids, *others) of all processes, in the order of ranks, an id that was there already left out.

    On the CPU, one row per image.  All other processes than the first get their own rows back.
    """
    if world_size() == 1:
        return ids, *others
    rows = of_all(len(ids))
    found = [at_first(tensor, rows) for tensor in (ids, *others)]
    if not is_first():
        return ids, *others
    _, positions = np.unique(found[0].numpy(), return_index=True)
    kept = torch.from_numpy(np.sort(positions))
    return tuple(tensor[kept] for tensor in found)


def at_first(own: Tensor, rows: Sequence[int]) -> Tensor:
    """All processes' rows, at the first process; elsewhere this process's own."""
    widths = [largest(width) for width in own.shape[1:]]  # one without rows may know none
    padded = own.new_zeros(max(rows), *widths)
    if len(own):
        padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in rows] if is_first() else None
    dist.gather(padded, parts)
    if parts is None:
        return own
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


# ---------------------------------------------------------------- Lightning


def trainer_arguments(config: DictConfig) -> dict[str, Any]:
    """What pytorch_lightning.Trainer is told about devices and processes."""
    devices, here = config.trainer.devices, place()
    if devices == "auto":
        devices = here.local_world_size
    elif not isinstance(devices, int):
        devices = [int(device) for device in devices]
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if here.world_size == 1:
        # Else Lightning, within a batch script of Slurm, answers SIGUSR1 itself: by a checkpoint of its
        # own, which it takes up unasked, and scontrol requeue.
        return {"devices": devices, "plugins": [LightningEnvironment()]}
    from pytorch_lightning.strategies import DDPStrategy

    strategy = DDPStrategy(
        timeout=timedelta(seconds=config.trainer.timeout),
        # A frozen trunk, or a layer that this pooling leaves out, has no gradient on any process.
        find_unused_parameters=True,
        # Equal on all processes by what they are computed of; a memory is too large to send at each step.
        broadcast_buffers=False,
    )
    return {
        "devices": devices,
        "num_nodes": here.nodes,
        "strategy": strategy,
        "plugins": [TorchElasticEnvironment()],
    }
