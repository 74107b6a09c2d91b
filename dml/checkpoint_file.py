"""One checkpoint file: written whole or not at all, and read only if it is as it was written."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dml import record
from dml.run_directory import LAST, PREVIOUS

NEEDED = ("state_dict", "global_step", "epoch", "loops")


class Damaged(Exception):
    """A file that is no checkpoint, or not as it was written; the message says why."""


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint aside, onto the disk, then rename; the last one before it stays as previous.ckpt.

    Raises OSError or RuntimeError (torch's, of a full disk): all files are then as they were.
    """
    kept = path.with_name(PREVIOUS) if path.name == LAST else None
    with record.aside(path, kept) as file:
        torch.save(dict(content), file)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.  Nothing in it is executed.

    Raises Damaged.  torch.load alone would take other weights for granted: it does not compare the
    CRC-32 that torch.save writes for every tensor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        if changed is not None:
            raise Damaged(f"{changed} in it is not as it was written (CRC-32)")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged:
        raise
    except Exception as error:  # a damaged file can fail in any way
        size = path.stat().st_size if path.exists() else None
        what = {None: "there is none", 0: "it is empty"}.get(
            size, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
        raise Damaged(what) from error
    missing = [name for name in NEEDED if not isinstance(content, dict) or name not in content]
    if missing:
        raise Damaged(f"it is no checkpoint of a run: it lacks {missing[0]}")
    return content
