"""`dml-index add=...`, `remove=...` and `rebuild=...`."""

import fnmatch
import logging
from pathlib import Path
from typing import Any

import numpy as np

from dml.data.progress import share_bar
from dml.errors import ConfigurationError, Problem, RunError
from dml.index import embedding, faiss_index, files, inputs, servers, writing
from dml.index.listing import Listing
from dml.index.making import (
    check_recipe,
    embed,
    listed,
    plan_of,
    report,
    say,
    show_unreadable,
    write_unreadable,
)
from dml.index.opening import open_local, open_named
from dml.index.searchable import Searchable
from dml.index.servers import ServerIndex
from dml.index.store import Index
from dml.index.writing import Source

log = logging.getLogger("dml")

GROWN = 4  # times the images that lists and codes were trained for
OF_IMAGES = {"encoder", "split", "batch_size", "workers", "device"}


def add(given: dict[str, Any]) -> int:
    """`add=DIR out=INDEX`."""
    index = open_named("out", given["out"])
    if Path(given["add"]).suffix in (".npz", ".npy"):
        return add_embeddings(index, given)
    bundle = inputs.bundle_of(index, given.get("encoder"))
    found = listed("add", given)
    with files.locked(index.path):
        index.close()
        index = open_named("out", given["out"])
        known = known_below(index, found.root)
        fresh = [number for number, path in enumerate(found.paths) if path not in known]
        new = Listing(
            found.root,
            [found.paths[n] for n in fresh],
            [found.labels[n] for n in fresh],
            found.left_out,
        )
        log.info(
            "%s images are new, %s are there already.",
            f"{len(fresh):,}",
            f"{len(found.paths) - len(fresh):,}",
        )
        plan = plan_of("add", bundle, found, given)
        partial = embedding.Partial(index.path, plan)
        source, unreadable = embed(new, bundle, partial, given)
        write_unreadable(index.path, unreadable)
        if len(source.paths):
            append(index, source)
        partial.clear()
    index.close()
    say(index.path)
    show_unreadable(index.path, unreadable)
    if new.paths and not len(source.paths):
        raise RunError(f"none of the {len(new.paths):,} new images could be read.")
    return 0


def add_embeddings(index: Searchable, given: dict[str, Any]) -> int:
    """`add=FILE.npz out=INDEX`."""
    where = f"add={given['add']}"
    if index.encoder_fingerprint is not None:
        what = "are embeddings from elsewhere, and the index was built by an encoder: they may not compare."
        raise ConfigurationError([Problem(where, what)])
    for key in given.keys() & OF_IMAGES:
        raise ConfigurationError(
            [Problem(f"{key}={given[key]}", "goes with add=DIR, a folder of images.")]
        )
    source, _ = inputs.embeddings_of("add", given["add"], None, given.get("labels"))
    if source.embeddings.shape[1] != index.dim:
        what = (
            f"has embeddings of {source.embeddings.shape[1]} numbers; the index holds {index.dim}."
        )
        raise ConfigurationError([Problem(where, what)])
    known = known_below(index, None)
    twice = [path for path in source.paths if path in known]
    if twice:
        what = f"{len(twice)} of its paths are in the index already, such as {twice[0]}. Remove them first."
        raise ConfigurationError([Problem(where, what)])
    with files.locked(index.path):
        index.close()
        index = open_named("out", given["out"])
        append(index, source)
    index.close()
    say(index.path)
    return 0


def known_below(index: Searchable, root: Path | None) -> set[str]:
    """Paths of a folder that are in the index."""
    if isinstance(index, Index):
        return index.known(root)
    assert isinstance(index, ServerIndex)
    name = "" if root is None else str(root)
    return {image.path for image in index.everything() if image.root == name}


def append(index: Searchable, source: Source) -> None:
    """Add, wherever the index is kept; say when it has outgrown its training."""
    if isinstance(index, ServerIndex):
        with share_bar(f"Writing to {index.kind}") as progress:
            servers.append(index, source, progress)
        return
    assert isinstance(index, Index)
    writing.append(index, source)
    grown = (index.rows + len(source.paths)) / max(index.manifest["search"]["built_for"], 1)
    trained = (
        "IVF" in index.manifest["search"]["factory"] or "PQ" in index.manifest["search"]["factory"]
    )
    if grown > GROWN and trained:
        log.info(
            "The index holds %.0f times the images that it was trained for. To train it again: "
            "dml-index rebuild=%s",
            *(grown, index.path),
        )


def remove(given: dict[str, Any]) -> int:
    """`remove=NAME out=INDEX`."""
    index = open_named("out", given["out"])
    with files.locked(index.path):
        index.close()
        index = open_named("out", given["out"])
        if isinstance(index, ServerIndex):
            named = {image.row: image.path for image in index.everything()}
        else:
            assert isinstance(index, Index)
            named = {int(row): index.path_of(int(row)) for row in index.live_rows()}
        rows: set[int] = set()
        problems = []
        for pattern in given["remove"]:
            found = matching(pattern, named)
            if not found:
                what = "is no path, directory or pattern of an image in the index."
                problems.append(Problem(f"remove={pattern}", what))
            rows |= found
        if problems:
            raise ConfigurationError(problems)
        if len(rows) == len(named):
            what = (
                f"would remove all {len(rows):,} images. Delete the directory {index.path} instead."
            )
            raise ConfigurationError([Problem(f"remove={','.join(given['remove'])}", what)])
        if isinstance(index, ServerIndex):
            servers.remove(index, sorted(rows))
        else:
            assert isinstance(index, Index)
            writing.remove(index, np.array(sorted(rows)))
    index.close()
    log.info("Removed %s images.", f"{len(rows):,}")
    say(index.path)
    return 0


def matching(pattern: str, named: dict[int, str]) -> set[int]:
    """Rows whose path is the pattern, lies below it, or matches it as a shell would have it."""
    exact = {
        row
        for row, path in named.items()
        if path == pattern or path.startswith(pattern.rstrip("/") + "/")
    }
    return exact or {row for row, path in named.items() if fnmatch.fnmatchcase(path, pattern)}


def rebuild(given: dict[str, Any]) -> int:
    """`rebuild=INDEX index=...`."""
    index = open_local("rebuild", given["rebuild"])
    search = index.manifest["search"]
    wanted, parameters = given.get("index"), given.get("parameters")
    if wanted is None and parameters is None and search["kind"] not in faiss_index.KINDS:
        wanted, parameters = search["factory"], search["parameters"]
    elif wanted is None and parameters is not None:
        wanted = search["kind"]
    asked = {"index": wanted, "parameters": parameters}
    check_recipe(asked, len(index), index.dim, index.similarity)
    with files.locked(index.path):
        index.close()
        index = open_local("rebuild", given["rebuild"])
        recipe = faiss_index.recipe(wanted, len(index), index.dim, parameters)
        with share_bar(f"Building {recipe.factory}") as progress:
            writing.rebuild(index, recipe, progress)
    index.close()
    report(index.path, given)
    return 0
