"""Ten steps of several runs, by as many processes as the environment says: `distributed_cases.py IN OUT`.

Started by test_distributed.py, once for many runs: a process needs seconds to import all it needs.

IN: a pickle, name -> Case.  OUT: a folder; OUT/<name> is the run directory, and OUT/evaluated.pt what
`evaluated` returns of the first run's test images.
"""

import os
import pickle
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback

from dml import cli, distributed, run
from dml.config import compose
from dml.config.compose import Composed
from dml.data.images import BadImages
from dml.data.index import ImageIndex, ImageSet
from dml.data.loaders import eval_loader
from dml.data.preprocess import Preprocess
from dml.errors import Interrupted
from dml.measure import embed
from dml.processes import STORE

FEW = (1, 2, 3, 5, 8)  # images: fewer than processes, as many, and numbers that nobody can halve


@dataclass
class Case:
    """A run of ten steps; stopped: of which a signal to the last process leaves six, and a checkpoint."""

    composed: Composed
    index: ImageIndex
    stopped: bool = False


class Stop(Callback):
    """SIGTERM to one process, which all of them notice after their next step."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5 and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def ten_steps(case: Case, run_dir: Path) -> None:
    """Train as dml-train would, without validation and final evaluation."""
    config, index = case.composed.config, case.index
    config.run_dir = str(run_dir)
    nothing = chosen(index.part("val"), [])
    with distributed.joined(config), suppress(Interrupted):
        begun = run.begin(case.composed, index)
        run.fit(config, begun, index.part("train"), nothing, [], [Stop()] * case.stopped)


def chosen(part: ImageSet, positions: list[int]) -> ImageSet:
    """Some of the images of a split."""
    own = np.array(positions, np.int64)
    paths, labels, ids = part.relative_paths[own], part.labels[own], part.ids[own]
    return ImageSet(part.root, paths, labels, part.class_names, ids)


def evaluated(part: ImageSet) -> dict[str, tuple[torch.Tensor, ...]]:
    """For few images and unreadable ones, (pixels, labels, ids) as the first process has them in the end."""
    found = {}
    preprocess = Preprocess(16, 16, "bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for count in FEW:
        every = range(count)
        for gone in dict.fromkeys([every[:0], every[: count // 2], every[1:], every[:-1]]):
            few = chosen(part, list(every))
            few.relative_paths[list(gone)] = "no such file"
            images = eval_loader(few, preprocess, 2, 0, positions=distributed.share_of(count))
            pixels = {"pixels": lambda images: images.flatten(1)}
            vectors, *rest = embed(pixels, images, BadImages("skip"), torch.device("cpu"))
            rows = (vectors["pixels"], *rest)
            found[f"{count} images without {list(gone)}"] = tuple(map(torch.from_numpy, rows))
    return found


def main() -> None:
    torch.set_num_threads(1)
    compose.register()  # what the pickled configurations refer to
    cli.set_up_log()
    cases, out = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    for name, case in cases.items():
        os.environ[STORE] = str(out / f"{name}.store")  # a file serves one meeting
        ten_steps(case, out / name)
    first = next(iter(cases.values()))
    os.environ[STORE] = str(out / "evaluated.store")
    with distributed.joined(first.composed.config):
        found = evaluated(first.index.part("test"))
        if distributed.is_first():
            torch.save(found, out / "evaluated.pt")


if __name__ == "__main__":
    main()
