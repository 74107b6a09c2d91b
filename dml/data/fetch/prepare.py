"""Bring the published files of a data set: fetch what can be fetched, say what a person must bring."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dml.data.fetch.archives import ENDINGS, extract
from dml.data.fetch.download import RemoteFile, fetch
from dml.errors import ConfigurationError, Problem

log = logging.getLogger("dml")


def obtain(files: Sequence[RemoteFile], root: Path, where: str) -> None:
    """Put the files of one packaging under `root`, proven whole, and unpack the archives among them.

    The first packaging is taken whose every file is there or has an address.

    Raises ConfigurationError naming the files that must be brought by hand, or what `fetch` and
    `extract` raise.
    """
    packagings = packagings_of(files)
    for group in packagings:
        if not by_hand(group, root):
            paths = fetched(group, root)
            for path in paths:
                if path.name.endswith(ENDINGS):
                    log.info("Unpacking %s", path)
                    extract(path)
            return
    raise ConfigurationError([Problem(where, how_to_bring(packagings, root))])


def fetched(files: Sequence[RemoteFile], root: Path) -> list[Path]:
    """Where the files lie once all are there."""
    try:
        return [fetch(file, root) for file in files]
    except KeyboardInterrupt:
        log.info("The same command goes on where this one was stopped.")
        raise


def packagings_of(files: Sequence[RemoteFile]) -> list[list[RemoteFile]]:
    """The files, grouped by packaging in the order listed."""
    names = dict.fromkeys(file.packaging for file in files)
    return [[file for file in files if file.packaging == name] for name in names]


def by_hand(files: Sequence[RemoteFile], root: Path) -> list[RemoteFile]:
    """The files that no address gives and that are not there."""
    return [file for file in files if not file.urls and not (root / file.name).exists()]


def how_to_bring(packagings: Sequence[Sequence[RemoteFile]], root: Path) -> str:
    """Which files to put where, and how to know them."""
    lines = ["cannot be fetched without you."]
    for number, group in enumerate(packagings):
        if number == 0:
            lines.append(f"Put into {root}, then run the same command again:")
        else:
            lines.append("or, instead:")
        for file in by_hand(group, root):
            lines.append(f"  {file.name}  ({file.facts()})")
            lines += [f"    {file.by_hand}"] if file.by_hand else []
    return "\n".join(lines)
