"""`dml-index encoder=... images=...` and `embeddings=...`: a new index, and what all actions share."""

import csv
import io
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from dml import tables
from dml.data.progress import share_bar
from dml.errors import ConfigurationError, Problem, RunError
from dml.index import embedding, faiss_index, files, inputs, listing, measuring, servers, writing
from dml.index.listing import Listing
from dml.index.opening import open_index
from dml.index.page import one_line
from dml.index.searchable import Searchable
from dml.index.store import Index
from dml.index.writing import Source
from dml.record import aside

log = logging.getLogger("dml")

SHOWN = 20  # lines of a table of unreadable files


def build_from_images(given: dict[str, Any]) -> int:
    """`encoder=BUNDLE images=DIR out=INDEX`."""
    bundle = inputs.bundle(given["encoder"])
    found = listed("images", given)
    check_recipe(given, len(found.paths), bundle.dim, bundle.similarity)
    directory = new_directory(given["out"], resumes=True)
    plan = plan_of("build", bundle, found, given)
    with files.locked(directory):
        partial = embedding.Partial(directory, plan)
        source, unreadable = embed(found, bundle, partial, given)
        write_unreadable(directory, unreadable)
        if not len(source.paths):
            show_unreadable(directory, unreadable)
            raise RunError(
                f"none of the {len(found.paths):,} images of {found.root} could be read."
            )
        make(directory, source, bundle.similarity, bundle.as_dict(), given)
        partial.clear()
    report(directory, given)
    show_unreadable(directory, unreadable)
    return 0


def build_from_embeddings(given: dict[str, Any]) -> int:
    """`embeddings=FILE out=INDEX`."""
    word = given["embeddings"]
    source, similarity = inputs.embeddings_of(
        "embeddings", word, given.get("similarity"), given.get("labels")
    )
    count, dim = source.embeddings.shape
    check_recipe(given, count, dim, similarity)
    directory = new_directory(given["out"], resumes=False)
    with files.locked(directory):
        make(directory, source, similarity, None, given)
    report(directory, given)
    return 0


def check_recipe(given: dict[str, Any], count: int, dim: int, similarity: str) -> None:
    """Raise ConfigurationError for an index that Faiss does not make."""
    wanted, parameters = given.get("index"), given.get("parameters")
    problems = faiss_index.problems(wanted, parameters, count, dim, similarity)
    if problems:
        raise ConfigurationError(problems)


def new_directory(value: str, resumes: bool) -> Path:
    """The directory of a new index, made where it is not there.

    resumes: begun work may lie in it.  Raises ConfigurationError: it holds something else.
    """
    directory, where = Path(value).expanduser().absolute(), f"out={value}"
    if files.exists(directory):
        what = f"holds an index already. To add images: dml-index add=DIR out={value}\n"
        raise ConfigurationError(
            [Problem(where, what + "For another one choose another directory.")]
        )
    if directory.is_file():
        raise ConfigurationError([Problem(where, "is a file. Choose a directory.")])
    ours = {files.LOCK, files.UNREADABLE, *([files.PARTIAL] if resumes else [])}
    if directory.is_dir() and {path.name for path in directory.iterdir()} - ours:
        raise ConfigurationError([Problem(where, "holds other files. Choose an empty directory.")])
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError([Problem(where, f"cannot be made ({error.strerror}).")]) from error
    return directory


def make(
    directory: Path,
    source: Source,
    similarity: str,
    encoder: dict[str, str] | None,
    given: dict[str, Any],
) -> None:
    """Write the index, in the directory or in a server."""
    begin = time.perf_counter()
    if "store" in given:
        server = {"kind": given["store"], "address": given["address"]}
        server["collection"] = given.get("collection", "dml")
        with share_bar(f"Writing to {given['store']}") as progress:
            servers.create(directory, source, similarity, encoder, server, progress)
        return
    count, dim = source.embeddings.shape
    recipe = faiss_index.recipe(given.get("index"), count, dim, given.get("parameters"))
    with share_bar(f"Building {recipe.factory}") as progress:
        writing.create(directory, source, similarity, encoder, recipe, progress)
    log.info(
        "Built %s over %s vectors in %.1f s.",
        recipe.factory,
        f"{count:,}",
        time.perf_counter() - begin,
    )


def plan_of(
    purpose: str, bundle: inputs.Bundle, found: Listing, given: dict[str, Any]
) -> dict[str, Any]:
    """What tells begun work from that of another command."""
    return {
        "purpose": purpose,
        "encoder": bundle.fingerprint,
        "images": str(found.root),
        "labels": given.get("labels"),
        "split": given.get("split"),
    }


def listed(word: str, given: dict[str, Any]) -> Listing:
    """The images of a folder, or those of a labels file in it."""
    if "labels" in given:
        return listing.of_labels(word, given[word], given["labels"], given.get("split"))
    return listing.of_folder(word, given[word])


def embed(
    found: Listing, bundle: inputs.Bundle, partial: embedding.Partial, given: dict[str, Any]
) -> tuple[Source, list[tuple[str, str]]]:
    """Embeddings of a listing, and what could not be read or was left out."""
    begin = time.perf_counter()
    before = len(partial.files())
    if before:
        log.info("Going on with the work that was begun in %s.", partial.directory)
    encoder = bundle.load(given.get("device"))
    workers = given.get("workers", embedding.default_workers())
    source, unreadable = embedding.embed(
        found, encoder, partial, given.get("batch_size", 64), workers
    )
    seconds = time.perf_counter() - begin
    log.info("Embedded %s images in %.1f s.", f"{len(source.paths):,}", seconds)
    return source, [*found.left_out, *unreadable]


def report(directory: Path, given: dict[str, Any]) -> None:
    """Open what was written, measure it, print the table."""
    index = open_index(directory, verify=False)
    log.info("%s", summary(index))
    if not isinstance(index, Index):
        log.info(
            "%s at %s keeps its vectors; how well it searches is its own to say.",
            index.kind,
            given["address"],
        )
        index.close()
        return
    row = measuring.measure(index, measuring.truth(index))
    writing.note(directory, measured=row.as_dict())
    tables.show(measuring.table([row]), foot=measuring.footnote(row, index.dim))
    index.close()


def say(directory: Path) -> None:
    """Log what an index holds now."""
    index = open_index(directory, verify=False)
    log.info("%s", summary(index))
    index.close()


def summary(index: Searchable) -> str:
    """One line: how much is searchable, and by what."""
    classes = f" of {len(index.labels):,} classes" if index.labels else ""
    return (
        f"{index.path}: {len(index):,} images{classes}, {index.dim} numbers each, compared by "
        f"{index.similarity}; {index.kind}"
    )


def write_unreadable(directory: Path, unreadable: Sequence[tuple[str, str]]) -> None:
    """unreadable.csv of the last images that were embedded: path, reason; none where all are in.

    Raises RunError: it cannot be written.
    """
    if not unreadable:
        (directory / files.UNREADABLE).unlink(missing_ok=True)
        return
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerows([("path", "reason"), *unreadable])
    try:
        with aside(directory / files.UNREADABLE) as file:
            file.write(content.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise RunError(
            f"cannot write {directory / files.UNREADABLE} ({error.strerror})."
        ) from error


def show_unreadable(directory: Path, unreadable: Sequence[tuple[str, str]]) -> None:
    """A table of what is not in the index, and why."""
    if not unreadable:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("not indexed", overflow="fold")
    table.add_column("why", overflow="fold")
    for path, why in unreadable[:SHOWN]:
        table.add_row(escape(one_line(path)), escape(one_line(why)))
    many = (
        f"{len(unreadable):,} files are not in the index"
        if len(unreadable) > 1
        else "1 file is not in the index"
    )
    foot = (
        f"All of them: {directory / files.UNREADABLE}"
        if len(unreadable) > SHOWN
        else f"Also in {directory / files.UNREADABLE}"
    )
    tables.show(table, many, escape(foot))
