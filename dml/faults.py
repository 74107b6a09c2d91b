"""What can end a run that was configured rightly, in words: which option to lower, what is kept, what to do.

Numbers that are not finite, and what memory, disk and the loader's workers do to a long run.
"""

import errno
import logging
import os
import shutil
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from dml import distributed
from dml.chunks import follows_the_batch
from dml.data.index import ImageSet
from dml.errors import RunError

log = logging.getLogger("dml")

MOST_FILES = 20  # of a batch, in a message
MEND = (
    "If training diverged: lower optimizer.lr and optimizer.head_lr, add schedule.warmup_steps=100 or "
    "trainer.gradient_clip_val=1, and begin anew."
)


# ---------------------------------------------------------------- not a number


class NanSteps:
    """Steps of training whose loss or gradient was not finite: stop at the first, or skip a few.

    on_nan: "stop", or "skip" up to `most` of them in the whole run.  images: the training images, which
    messages name; None: by their ids.  steps: those skipped so far, counted from 1.
    """

    def __init__(self, on_nan: str = "stop", most: int = 0, images: ImageSet | None = None):
        self.skips, self.most, self.images = on_nan == "skip", most, images
        self.steps: list[int] = []

    def met(self, where: str, step: int, ids: Tensor, vectors: Tensor) -> None:
        """Skip a step, with a warning, or raise RunError.  On all processes together.

        where: step, epoch, what was not finite, and the learning rates.  step: from 1.  ids: int64 [n] of
        this process's part of the batch.  vectors: [n, d], their vectors before normalisation.
        """
        told = f"{where}\n{self.files(ids, vectors)}"
        if not self.skips:
            raise RunError(
                f"{told}\n{MEND}\nIf it is a single batch: resume with trainer.on_nan=skip, which leaves "
                "such steps out (the record counts them)."
            )
        self.steps.append(step)
        if len(self.steps) > self.most:
            raise RunError(
                f"{told}\n{len(self.steps)} steps were not finite ({listed(self.steps)}), and no more than "
                f"trainer.max_nan_steps={self.most} are left out.\n{MEND}"
            )
        log.warning("NOT FINITE, left out (%d of at most %d): %s", len(self.steps), self.most, told)

    def files(self, ids: Tensor, vectors: Tensor) -> str:
        """The images of the whole batch, one a line, those with embeddings that are not finite first."""
        finite = vectors.detach().isfinite().all(1).tolist()
        marked = {self.name(i): "" if f else "n" for i, f in zip(ids.tolist(), finite, strict=True)}
        marked = distributed.merged(marked)
        ordered = [k for k, v in marked.items() if v] + [k for k, v in marked.items() if not v]
        broken = sum(bool(value) for value in marked.values())
        where = f"first the {broken} of {len(marked)} whose embeddings are not finite"
        lines = [f"Images of the batch, {where if broken else 'all with finite embeddings'}:"]
        lines += [f"  {name}" for name in ordered[:MOST_FILES]]
        if len(ordered) > MOST_FILES:
            lines.append(f"  and {len(ordered) - MOST_FILES} more")
        return "\n".join(lines)

    def name(self, image_id: int) -> str:
        """File of an image, relative to the data's root."""
        if self.images is None:
            return f"image {image_id}"
        return str(self.images.relative_paths[np.flatnonzero(self.images.ids == image_id)[0]])


def listed(numbers: Sequence[int]) -> str:
    """The first ten numbers, in words."""
    return ", ".join(map(str, numbers[:10])) + (" ..." if len(numbers) > 10 else "")


def gradient_norm(parameters: Iterable[nn.Parameter], like: Tensor) -> Tensor:
    """Euclidean length of all gradients together, a scalar; not finite where one of them is not.

    like: a scalar, for its device, where nothing has a gradient.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros_like(like)
    return torch.nn.utils.get_total_norm(gradients).to(like.device)


def moving_buffers(*modules: nn.Module | None) -> list[Tensor]:
    """Buffers that a forward pass may change: running statistics, of BatchNorm layers that learn them.

    modules: an encoder, of which these layers count; losses and regularisers, of which every buffer does.
    """
    encoder, *others = (module for module in modules if module is not None)
    layers = [layer for layer in encoder.modules() if follows_the_batch(layer)]
    return [buffer for module in (*layers, *others) for buffer in module.buffers()]


def check_weights(state: Mapping[str, Tensor], parameters: Iterable[str], where: str) -> None:
    """Raise RunError if weights that are about to be written are not finite.

    state: name -> tensor of a whole module.  parameters: which of the names are parameters; other
    entries, buffers, may hold -inf (masks).  where: step and epoch.
    """
    learned = set(parameters)
    for name, tensor in state.items():
        if not torch.is_tensor(tensor) or not tensor.is_floating_point():
            continue
        fine = tensor.isfinite()
        if not fine.all() and (name in learned or not (fine | tensor.isneginf()).all()):
            raise RunError(
                f"{where}: the weights are not finite ({name}), and were not saved.\n{MEND}"
            )


# ---------------------------------------------------------------- memory, disk, workers


class Stage(Callback):
    """What a run is at: "training", "validation" (within training) or "evaluation" (after it)."""

    def __init__(self) -> None:
        self.name = "training"

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remember where training failed; Lightning forgets it."""
        if trainer.validating:
            self.name = "validation"


@contextmanager
def explained(config: DictConfig, run_dir: Path, stage: Stage) -> Iterator[None]:
    """Within this block a fault of machine, disk or memory is a RunError that says what to do."""
    try:
        yield
    except RunError:
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        if (said := explanation(error, config, run_dir, stage.name)) is None:
            raise
        log.info("%s", traceback.format_exc(), extra={"quiet": True})
        raise RunError(said) from error


def explanation(
    error: Exception, config: DictConfig, run_dir: Path, stage: str = "training"
) -> str | None:
    """What an error means and what to do about it; None: it is no fault of this kind."""
    first = str(error).strip().split("\n", 1)[0]
    # A full /dev/shm first: torch says so of workers, as well.
    for recognised, said in (
        (without_shared_memory, lambda: of_shared_memory(config)),
        (of_a_worker, lambda: of_workers(config, first)),
        (without_files, lambda: of_files(config)),
        (without_memory, lambda: of_memory(config, stage, error)),
        (without_room, lambda: of_disk(error, run_dir)),
    ):
        if recognised(error):
            return said()
    return None


def without_memory(error: Exception) -> bool:
    """Whether memory was refused, on a device or of the machine."""
    found = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or number_of(error) == errno.ENOMEM
        or any(text in str(error) for text in (*found, "std::bad_alloc"))
    )


def of_memory(config: DictConfig, stage: str, error: Exception) -> str:
    """Which options take memory, with their values of now."""
    of_cuda = any(word in str(error) for word in ("CUDA", "CUBLAS"))
    on_gpu = of_cuda or isinstance(error, torch.OutOfMemoryError)
    lower, more = [], []
    if stage == "training":
        sizes = {key: config.sampler[key] for key in BATCH_OPTIONS if key in config.sampler}
        if "batch_size" in sizes:
            sizes = {"batch_size": sizes["batch_size"]}
        lower += [f"sampler.{key} (now {value})" for key, value in sizes.items()]
        chunks = f"trainer.batch_chunks={2 * config.trainer.batch_chunks} (now {config.trainer.batch_chunks})"
        frozen = "" if config.backbone.freeze_bn else " with backbone.freeze_bn=true"
        more.append(
            f"or add {chunks}{frozen}: the same batch in parts, with the same gradient, which a resumed run "
            "may add (docs/large_batches.md)"
        )
        if on_gpu and config.trainer.precision == "32-true":
            more.append("or add trainer.precision=bf16-mixed (now 32-true)")
    else:
        lower.append(
            f"loader.eval_batch_size (now {config.loader.eval_batch_size}), which a resumed run may change "
            "and no number depends on"
        )
    lower.append(f"backbone.image_size (now {size_text(config.backbone.image_size)})")
    if not on_gpu and config.loader.num_workers:
        lower.append(f"loader.num_workers (now {config.loader.num_workers})")
    where = "the GPU" if on_gpu else "this machine"
    lines = [f"out of memory in {stage}: {where} has no more. {first_line(error)}", "Lower one of"]
    lines += [f"  {option}" for option in lower]
    return "\n".join([*lines, *[f"{option}." for option in more]])


BATCH_OPTIONS = ("batch_size", "classes_per_batch", "images_per_class")


def size_text(size: int | None) -> str:
    """`null: the weights' own`, or a number."""
    return "null: that of the weights" if size is None else str(size)


def of_a_worker(error: Exception) -> bool:
    """Whether a process that reads images has died."""
    text = str(error)
    return "DataLoader worker" in text and ("killed" in text or "exited unexpectedly" in text)


def of_workers(config: DictConfig, first: str) -> str:
    """Why a worker was probably killed."""
    return (
        f"a process that reads images was killed ({first})\nProbably the machine had no memory left: lower "
        f"loader.num_workers (now {config.loader.num_workers}; 0 reads in the main process) or "
        f"loader.eval_batch_size (now {config.loader.eval_batch_size}), or give the job more memory. {SHM}"
    )


SHM = "In Docker, /dev/shm may be too small: docker run --shm-size=8g, or --ipc=host."


def without_shared_memory(error: Exception) -> bool:
    """Whether /dev/shm is full, through which workers hand over their batches."""
    text = str(error).lower()
    return any(
        found in text
        for found in ("bus error", "insufficient shared memory", "out of shared memory")
    ) or ("/torch_" in text and "no space left" in text)


def of_shared_memory(config: DictConfig) -> str:
    """How to do with less of it."""
    return (
        "the shared memory through which workers hand over batches (/dev/shm) is full.\n"
        f"{SHM} Else lower loader.num_workers (now {config.loader.num_workers}; 0 needs none)."
    )


def without_files(error: Exception) -> bool:
    """Whether the system lets this process open no more files."""
    text = str(error)
    return (
        number_of(error) in (errno.EMFILE, errno.ENFILE)
        or "Too many open files" in text
        or "received 0 items of ancdata" in text
    )


def of_files(config: DictConfig) -> str:
    """How to allow more, or open fewer."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"too many open files: the limit is {limit} (ulimit -n).\nRaise it, ulimit -n 65536 before the "
        f"command, or lower loader.num_workers (now {config.loader.num_workers})."
    )


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch.save's words, whatever the disk's error was.
TORCH_SAVE = ("PytorchStreamWriter failed", "unexpected pos", "inline_container.cc")


def without_room(error: Exception) -> bool:
    """Whether a file could not be written."""
    if number_of(error) in (*FULL, errno.EROFS):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in TORCH_SAVE)


def of_disk(error: Exception, run_dir: Path) -> str:
    """Which file it was, and what room there is."""
    named = getattr(error, "filename", None)
    path = run_dir if named is None else Path(os.fsdecode(named))
    what = f"cannot write {path}" if named is not None else f"cannot write into {path}"
    reason = os.strerror(number) if (number := number_of(error)) else first_line(error)
    if number == errno.EFBIG:
        reason += "; a limit on the size of files (ulimit -f)?"
    return (
        f"{what} ({reason}). {free(path)}\nWhat was there before is whole. Make room, then resume."
    )


def free(path: Path) -> str:
    """How much room there is where a path lies."""
    folder = next((p for p in (path, *path.absolute().parents) if p.is_dir()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB are free in {folder}."


def number_of(error: Exception) -> int | None:
    """The system's number of an error."""
    return error.errno if isinstance(error, OSError) else None


def first_line(error: Exception) -> str:
    """An error's own words, shortened."""
    line = str(error).strip().split("\n", 1)[0] or type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]} ..."
