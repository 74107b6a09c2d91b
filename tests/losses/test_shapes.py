"""The shapes and element types written in the signatures hold at run time.

jaxtyping checks them through an import hook, which must be in place before `dml` is imported: hence a
process of its own, which also keeps the check out of every other test.
"""

import subprocess
import sys
from pathlib import Path

from loss_cases import loss_files

HERE = Path(__file__).parent

PROGRAM = """
import sys
import jaxtyping
sys.path.insert(0, sys.argv[1])
modules = [f"dml.losses.{name}" for name in sys.argv[2:]]
with jaxtyping.install_import_hook(modules, "beartype.beartype"):
    import dml.losses.pairs
    from loss_cases import drawn_batches, loss_files
    for file in loss_files():
        file.target

import torch
names = []
for file in loss_files():
    loss = file.make()
    for kind, x, labels in drawn_batches():
        for dtype in (torch.float64, torch.bfloat16):
            loss(x.to(dtype).requires_grad_(), labels).backward()
    if file.schema.miners:
        i = torch.arange(2)
        loss(x, labels, (i, i + 1, i + 2))
        loss(x, labels, (i, i + 1, i, i + 2))
    if file.schema.compares != "proxies":
        loss(x, labels, reference=x[1:], reference_labels=labels[1:])
    names.append(file.name)

try:  # the hook is really in place
    dml.losses.pairs.unit(torch.zeros(3))
except jaxtyping.TypeCheckError:
    print("checked", len(names))
"""


def test_signatures_hold():
    """An annotation that is not checked turns into a lie at the first change."""
    names = ["pairs", *(file.name for file in loss_files())]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HERE), *names],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("checked"), done.stdout
