"""Ten steps of several runs, by as many processes as the environment says: `distributed_cases.py IN OUT`.

Started by test_distributed.py, once for many runs: a process needs seconds to import all it needs.

IN: a pickle, name -> (Composed, ImageIndex).  OUT: a folder; OUT/<name> is the run directory.
"""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import torch

from dml import cli, distributed, run
from dml.config import compose
from dml.config.compose import Composed
from dml.data.index import ImageIndex, ImageSet
from dml.processes import STORE


def ten_steps(composed: Composed, index: ImageIndex, run_dir: Path) -> None:
    """Train as dml-train would, without validation and final evaluation."""
    composed.config.run_dir = str(run_dir)
    with distributed.joined(composed.config):
        begun = run.begin(composed, index)
        run.fit(composed.config, begun, index.part("train"), empty(index.part("val")), [])


def empty(part: ImageSet) -> ImageSet:
    none = np.empty(0, np.int64)
    return ImageSet(part.root, none.astype(str), none, (), none)


def main() -> None:
    torch.set_num_threads(1)
    compose.register()  # what the pickled configurations refer to
    cli.set_up_log()
    cases, out = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    for name, (composed, index) in cases.items():
        os.environ[STORE] = str(out / f"{name}.store")  # a file serves one meeting
        ten_steps(composed, index, out / name)


if __name__ == "__main__":
    main()
