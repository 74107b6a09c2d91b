"""Embed files in batches, keeping what is done: a killed command goes on where it was.

Finished batches are kept in `partial/`, each written aside and renamed; all are put together at the end.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dml.errors import ConfigurationError, Problem, RunError
from dml.index import files
from dml.index.listing import Listing
from dml.index.writing import Source
from dml.record import aside, read_json, write_json

PLAN = "plan.json"
KEEP_EVERY, KEEP_SECONDS = 4096, 20.0  # images, seconds: what a kill can cost


@dataclass(frozen=True)
class Done:
    """What one file of `partial/` holds: embeddings [n, dim] of paths, and (path, why) of the others."""

    paths: list[str]
    embeddings: np.ndarray
    unreadable: list[tuple[str, str]]


class Partial:
    """The directory `partial/` of an index that is being made.

    plan: what is embedded by what; work that was begun under another plan is not gone on with.

    Raises ConfigurationError: it holds other work.
    """

    def __init__(self, directory: Path, plan: dict[str, Any]):
        self.directory = directory / files.PARTIAL
        self.directory.mkdir(exist_ok=True)
        written = self.directory / PLAN
        if written.exists():
            before = read_json(written)
            if before != plan:
                differing = ", ".join(name for name in plan if before.get(name) != plan[name])
                what = f"holds the begun work of another command (another {differing}).\n"
                what += f"Repeat that command to finish it, or remove {self.directory} to drop it."
                raise ConfigurationError([Problem(f"out={directory}", what)])
        else:
            write_json(plan, written)

    def files(self) -> list[Path]:
        """Finished parts, in the order of their numbers."""
        return sorted(self.directory.glob("part-*.npz"))

    def parts(self) -> Iterator[Done]:
        """What was done; a damaged part is removed, to be done again."""
        for path in self.files():
            try:
                with np.load(path, allow_pickle=False) as part:
                    told = json.loads(part["told"].tobytes())
                    embeddings = part["embeddings"]
            except Exception as error:  # np.load fails in many ways; each means: not a whole file
                raise RunError(
                    f"{path} is damaged ({error}). Remove it; its images are embedded again."
                ) from error
            unreadable = [(name, why) for name, why in told["unreadable"]]
            yield Done(told["paths"], embeddings, unreadable)

    def keep(self, done: Done) -> None:
        """Write a part aside, then rename it."""
        told = json.dumps({"paths": done.paths, "unreadable": done.unreadable}).encode("ascii")
        names = [int(path.stem.removeprefix("part-")) for path in self.files()]
        with aside(self.directory / f"part-{max(names, default=-1) + 1:06}.npz") as file:
            arrays = {"embeddings": done.embeddings, "told": np.frombuffer(told, dtype=np.uint8)}
            np.savez(file, **arrays)

    def clear(self) -> None:
        """Remove it."""
        for path in self.directory.iterdir():
            path.unlink()
        self.directory.rmdir()


def embed(
    listing: Listing, encoder: Any, partial: Partial, batch_size: int, workers: int
) -> tuple[Source, list[tuple[str, str]]]:
    """Embeddings of all readable images, in the order of the listing, and (path, why) of the others.

    Raises RunError: no image could be read, the disk is full (what is done is kept), an embedding that
    is not finite.
    """
    done = {path for part in partial.parts() for path in [*part.paths, *dict(part.unreadable)]}
    waiting = [path for path in listing.paths if path not in done]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(
            "Embedding", total=len(listing.paths), completed=len(listing.paths) - len(waiting)
        )
        kept = Done([], np.empty((0, encoder.dim), np.float32), [])
        begun = time.monotonic()
        for found in embedded_batches(listing.root, waiting, encoder, batch_size, workers):
            kept = Done(
                kept.paths + found.paths,
                np.concatenate([kept.embeddings, found.embeddings]),
                kept.unreadable + found.unreadable,
            )
            progress.advance(task, len(found.paths) + len(found.unreadable))
            full = len(kept.paths) + len(kept.unreadable) >= KEEP_EVERY
            if full or time.monotonic() - begun > KEEP_SECONDS:
                keep(partial, kept)
                kept = Done([], np.empty((0, encoder.dim), np.float32), [])
                begun = time.monotonic()
        if kept.paths or kept.unreadable:
            keep(partial, kept)
    return collected(listing, partial)


def keep(partial: Partial, done: Done) -> None:
    """Keep a part.  Raises RunError: it cannot be written; the parts before it are kept."""
    try:
        partial.keep(done)
    except OSError as error:
        raise RunError(
            f"cannot write {partial.directory} ({error.strerror or error}). What was embedded before is "
            "kept: make room, and the same command goes on."
        ) from error


def embedded_batches(
    root: Path, paths: Sequence[str], encoder: Any, batch_size: int, workers: int
) -> Iterator[Done]:
    """Batch by batch; files are decoded by `workers` threads, two batches ahead of the network."""
    import torch

    from dml.data.decode import UnreadableImage

    def pixels(path: str) -> torch.Tensor | str:
        try:
            return encoder.pixels(root / path)
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        queue = []
        starts = iter(range(0, len(paths), batch_size))

        def submit() -> None:
            start = next(starts, None)
            if start is not None:
                names = paths[start : start + batch_size]
                queue.append((names, [pool.submit(pixels, name) for name in names]))

        try:
            for _ in range(3):
                submit()
            while queue:
                names, futures = queue.pop(0)
                found = [future.result() for future in futures]
                submit()
                good = [
                    pair for pair in zip(names, found, strict=True) if not isinstance(pair[1], str)
                ]
                bad = [
                    (name, why)
                    for name, why in zip(names, found, strict=True)
                    if isinstance(why, str)
                ]
                rows = np.empty((0, encoder.dim), np.float32)
                if good:
                    rows = encoder.embed_pixels(torch.stack([image for _, image in good])).numpy()
                odd = [
                    name
                    for (name, _), row in zip(good, rows, strict=True)
                    if not np.isfinite(row).all()
                ]
                if odd:
                    raise RunError(f"the encoder gives {odd[0]} an embedding that is not finite.")
                yield Done([name for name, _ in good], rows, bad)
        finally:
            pool.shutdown(cancel_futures=True)


def collected(listing: Listing, partial: Partial) -> tuple[Source, list[tuple[str, str]]]:
    """All parts in the order of the listing; images that have gone from it since are left out."""
    place = {path: number for number, path in enumerate(listing.paths)}
    rows: dict[int, np.ndarray] = {}
    unreadable = []
    for part in partial.parts():
        rows |= {
            place[path]: row
            for path, row in zip(part.paths, part.embeddings, strict=True)
            if path in place
        }
        unreadable += [pair for pair in part.unreadable if pair[0] in place]
    order = sorted(rows)
    embeddings = (
        np.stack([rows[number] for number in order]) if order else np.empty((0, 0), np.float32)
    )
    paths = [listing.paths[number] for number in order]
    labels = [listing.labels[number] for number in order]
    return Source(listing.root, paths, labels, embeddings), unreadable


def default_workers() -> int:
    """Threads that decode: as many as this process may use cores."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
