"""`dml-search`: the nearest images of an index, in the terminal, as a page or as a service."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from dml import tables
from dml.config.options import Parser, parsed, several, text, truth, whole
from dml.data.files import missing_part
from dml.errors import ConfigurationError, Problem, RunError
from dml.index import inputs, listing
from dml.index.hits import Hit
from dml.index.opening import open_named
from dml.index.page import Answer, one_line, write_page
from dml.index.searchable import Searchable

log = logging.getLogger("dml")

HELP = """Search an index.

  dml-search index=INDEX query=IMAGE                 the nearest images
  dml-search index=INDEX query=[A,B] html=out.html   of several, or of a directory, and as a page of pictures
  dml-search -m index=INDEX query=A,B                the same
  dml-search index=INDEX query=FILE.npy              by embeddings
  dml-search index=INDEX serve=true port=8000        as a web page and an API

k=10                     how many
where=CLASS              only images of this class
rerank=k_reciprocal      or query_expansion; rerank.k1=20 and so on change its values (docs/postprocessing.md)
include_self=true        keep the query itself, where it is an image of the index
encoder=BUNDLE           where the encoder is now; root=DIR where the images are now, if they have moved
device=cpu               else a GPU where there is one

With serve=true also host, port and limits, as docs/search.md lists them under "Serving".
"""
OPTIONS: dict[str, Parser] = {
    "index": text,
    "query": several,
    "k": whole(1, 10_000),
    "where": text,
    "html": text,
    "rerank": text,
    "include_self": truth,
    "encoder": text,
    "root": text,
    "device": text,
    "serve": truth,
}
OF_QUERIES = ("query", "k", "where", "html", "rerank", "include_self")
K = 10


@dataclass(frozen=True)
class Query:
    """What is looked for.  vector: float32 [dim].  file: of the image, or None for an embedding."""

    name: str
    vector: np.ndarray
    file: Path | None


def run(words: list[str]) -> int:
    """Search as the words say; returns the exit code.

    Raises ConfigurationError with everything wrong with the words, RunError where the work fails.
    """
    if not words or any(word in ("--help", "-h") for word in words):
        print(HELP)
        return 0 if words else 2
    given, of_rerank = request(words)
    if given.get("serve"):
        return serve(given)
    return search(given, of_rerank)


def request(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values given, and the options of the re-ranking.  Raises ConfigurationError."""
    multiple = any(word in ("-m", "--multirun") for word in words)
    words = [word for word in words if word not in ("-m", "--multirun")]
    of_rerank = [word.removeprefix("rerank.") for word in words if word.startswith("rerank.")]
    words = [word for word in words if not word.startswith("rerank.")]
    options = dict(OPTIONS)
    if multiple:
        options["query"] = lambda value: several(value if value[0] == "[" else f"[{value}]")
    serving = "serve=true" in words
    if serving:
        options |= {name: parse for name, (parse, _, _) in serve_options().items()}
    given, problems = parsed("dml-search", words, options)
    if "index" not in given:
        problems.append(Problem("dml-search", "which index? Add index=INDEX."))
    if serving:
        for key in [key for key in OF_QUERIES if key in given]:
            problems.append(Problem(f"{key}=...", "does not go with serve=true."))
    elif "query" not in given:
        problems.append(
            Problem("dml-search", "what is looked for? Add query=IMAGE, or serve=true.")
        )
    if of_rerank and "rerank" not in given:
        problems.append(Problem(f"rerank.{of_rerank[0]}", "of which re-ranking? Add rerank=..."))
    if "html" in given:
        problems += page_problems(given["html"])
    if problems:
        raise ConfigurationError(problems)
    return given, of_rerank


def page_problems(typed: str) -> list[Problem]:
    """A page that could not be written: better said before the search."""
    where, path = f"html={typed}", Path(typed).expanduser().absolute()
    if path.suffix != ".html" or path.is_dir():
        return [Problem(where, "must name a file that ends in .html.")]
    if not path.parent.is_dir():
        return [Problem(where, f"there is no directory {missing_part(path.parent)}.")]
    return []


# -- as a service


def serve_options() -> dict[str, tuple[Parser, Any, str]]:
    """Options of the service.  Raises ConfigurationError where it is not installed."""
    for package in ("fastapi", "uvicorn", "python_multipart"):
        if importlib.util.find_spec(package) is None:
            what = f"needs the package {package}: pip install 'dml[serve]'."
            raise ConfigurationError([Problem("serve=true", what)])
    from dml.serve.options import OPTIONS as of_service

    return of_service


def serve(given: dict[str, Any]) -> int:
    """Answer requests until stopped."""
    values = {name: given.get(name, default) for name, (_, default, _) in serve_options().items()}
    index = open_named("index", given["index"], given.get("root"))
    encoder = inputs.bundle_of(index, given.get("encoder")).load(given.get("device"))
    from dml.serve.app import serve as run_service

    run_service(index=index, encoder=encoder, **values)
    return 0


# -- in the terminal


def search(given: dict[str, Any], of_rerank: Sequence[str]) -> int:
    """Search, print a table for each query, and write the page."""
    step = None
    if "rerank" in given:
        from dml.index import rerank

        step = rerank.step(given["rerank"], of_rerank)
    index = open_named("index", given["index"], given.get("root"))
    where = given.get("where")
    if where is not None and where not in index.labels:
        from dml.config import compose

        what = f"is no class of the index. {compose.nearest(where, index.labels, 'where=')}"
        raise ConfigurationError([Problem(f"where={where}", what)])
    if step is not None and index.similarity != "cosine":
        what = f"compares by cosine, and this index by {index.similarity}."
        raise ConfigurationError([Problem(f"rerank={step.name}", what)])
    queries, unreadable = read_queries(given["query"], index, given)
    own = [None if query.file is None else index.row_of(query.file) for query in queries]
    exclude = np.array([-1 if row is None or given.get("include_self") else row for row in own])
    vectors, k = np.stack([query.vector for query in queries]), given.get("k", K)
    if step is None:
        found = index.search(vectors, k, where, exclude)
    else:
        from dml.index import rerank

        found = rerank.reranked_search(index, vectors, k, step, where, exclude)
    answers = [
        Answer(query.name, None if row is None else index.items([row])[0].label, query.file, hits)
        for query, row, hits in zip(queries, own, index.as_hits(*found), strict=True)
    ]
    for answer in answers:
        show(answer)
    told = notes(index, given, bool((exclude >= 0).any()))
    for line in told:
        log.info("%s", line)
    for name, why in unreadable:
        log.error("Left out: %s: %s", one_line(name), why)
    if "html" in given:
        path = Path(given["html"]).expanduser().absolute()
        try:
            write_page(answers, index, told, path)
        except OSError as error:
            raise RunError(f"cannot write {path} ({error.strerror or error}).") from error
        log.info("Page: %s", path)
    index.close()
    return 1 if unreadable else 0


def notes(index: Searchable, given: dict[str, Any], left_out: bool) -> list[str]:
    """What has to be known to read the results."""
    kinds = {"cosine": "cosines", "dot": "inner products", "euclidean": "minus Euclidean distances"}
    lines = [f"Scores are {kinds[index.similarity]}: larger is nearer."]
    if "where" in given:
        lines.append(f"Only images of the class {given['where']}.")
    if "rerank" in given:
        lines.append(f"Ordered by {given['rerank']}; scores are those before it.")
    if left_out:
        lines.append("A query that is an image of the index is left out of its own results.")
    if index.calibration is not None:
        lines.append(index.calibration.sentence())
    return lines


def read_queries(
    names: Sequence[str], index: Searchable, given: dict[str, Any]
) -> tuple[list[Query], list[tuple[str, str]]]:
    """Queries with their embeddings, and (name, why) of what could not be read.

    Raises ConfigurationError: no such file, embeddings that do not fit.  RunError: none can be read.
    """
    problems, images, queries = [], [], []
    for name in names:
        path, where = Path(name).expanduser(), f"query={name}"
        try:
            if path.is_dir():
                below = listing.of_folder("query", name)
                images += [(f"{name.rstrip('/')}/{p}", below.root / p) for p in below.paths]
            elif path.suffix in (".npz", ".npy"):
                source, _ = inputs.embeddings_of("query", name)
                vectors = index.checked_queries(source.embeddings)
                queries += [Query(f"{name}[{n}]", v, None) for n, v in enumerate(vectors)]
            elif not path.is_file():
                what = (
                    "is no file."
                    if path.exists()
                    else f"there is no {missing_part(path.absolute())}."
                )
                problems.append(Problem(where, what))
            else:
                images.append((name, path.absolute()))
        except ConfigurationError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(Problem(where, f"{error}."))
    if problems:
        raise ConfigurationError(problems)
    unreadable: list[tuple[str, str]] = []
    if images:
        encoder = inputs.bundle_of(index, given.get("encoder")).load(given.get("device"))
        index.check_encoder(encoder)
        from dml.data.decode import UnreadableImage

        for name, path in images:
            try:
                vector = encoder.embed_pixels(encoder.pixels(path)[None])[0].numpy()
                queries.append(Query(name, vector, path))
            except UnreadableImage as error:
                unreadable.append((name, str(error)))
    if not queries:
        raise RunError(
            "\n".join(f"cannot read the image {one_line(n)} ({w})." for n, w in unreadable)
        )
    return queries, unreadable


def show(answer: Answer) -> None:
    """The nearest images of a query, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("class")
    table.add_column("")
    # A path is there to be copied: never folded, also where the terminal is narrow or there is none.
    longest = max((len(one_line(hit.path)) for hit in answer.hits), default=0)
    table.add_column("image", no_wrap=True, min_width=longest)
    for hit in answer.hits:
        label = "-" if hit.label is None else one_line(hit.label)
        cells = (
            str(hit.rank),
            f"{hit.score:.4f}",
            escape(label),
            verdict(hit),
            escape(one_line(hit.path)),
        )
        table.add_row(*cells)
    head = f"\n{one_line(answer.name)}"
    if answer.label is not None:
        head += f" ({one_line(answer.label)})"
    tables.show(table, escape(head), "" if answer.hits else "Nothing was found.")


def verdict(hit: Hit) -> str:
    """Whether it is the same thing, in a word; nothing without a threshold."""
    if hit.same is None:
        return ""
    return "[green]same[/green]" if hit.same else "[yellow]different[/yellow]"
