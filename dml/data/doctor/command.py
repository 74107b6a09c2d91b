"""`dml-data doctor`: the health of a labelled set of images, as a table, JSON and a page with the images."""

import dataclasses
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dml import build, tables
from dml.config import check, compose
from dml.data.doctor.examine import Facts, examine_all
from dml.data.doctor.findings import Finding, all_findings, counts_of
from dml.data.doctor.images import Labelled, from_directory, from_index
from dml.data.doctor.page import one_line, write_page
from dml.data.files import missing_part
from dml.errors import ConfigurationError, Problem, RunError
from dml.record import write_json

log = logging.getLogger("dml")

HELP = """Find damaged, odd and duplicate images, in your own data or any other set.

  dml-data doctor root=DIR                               one directory per class (and train/, test/)
  dml-data doctor data=csv data.root=DIR data.labels=FILE
  dml-data doctor data=cub200 root=DIR

Options: root=DIR, out=FILE.html (else doctor.html; FILE.json beside it lists everything), data=..., data.*
Exit code: 0 without errors (warnings and notes may be there), 1 with errors, 2 for wrong options.
"""
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def run(words: list[str]) -> int:
    """Examine a set as the words say, report, and return the exit code: 1 if there are errors, else 0.

    Raises ConfigurationError with everything wrong with the words, RunError where the work fails.
    """
    if not words or any(word in ("--help", "-h") for word in words):
        print(HELP)
        return 0 if words else 2
    images, out = parsed(words)
    facts = examined(images)
    findings = all_findings(images, facts)
    show(images, findings)
    report = out.with_suffix(".json")
    try:
        write_json(as_dict(images, findings), report)
        left_out = write_page(images, findings, out)
    except OSError as error:
        raise RunError(f"cannot write {out} and {report} ({error.strerror or error}).") from error
    shown = (
        "all of them" if not left_out else f"all but {left_out:,} of them; those are in the JSON"
    )
    log.info("\nPage with the images: %s (%s)\nEvery finding: %s", out, shown, report)
    return 1 if any(finding.kind.severity == "error" for finding in findings) else 0


def parsed(words: Sequence[str]) -> tuple[Labelled, Path]:
    """The images and the page's file that the words ask for.

    Raises ConfigurationError with everything wrong with them, or with the data they name.
    """
    problems, given, options = [], {"root": "", "out": "doctor.html"}, []
    for word in words:
        key, equals, value = word.partition("=")
        if key in given and equals:
            given[key] = value
        elif (key == "data" or key.startswith("data.")) and equals:
            options.append(word)
        else:
            nearest = compose.nearest(key, ["root", "out", "data", "data.*"], "")
            problems.append(Problem(word, f"is no option of dml-data doctor. {nearest}"))
    out = Path(given["out"]).expanduser().absolute()
    problems += out_problems(given["out"], out)
    try:
        images = images_of(given["root"], options)
    except ConfigurationError as error:
        raise ConfigurationError(problems + error.problems) from error
    if problems:
        raise ConfigurationError(problems)
    return images, out


def images_of(root: str, options: Sequence[str]) -> Labelled:
    """The images of a directory, or of the data set that `options` (data=..., data.*) compose.

    Raises ConfigurationError.
    """
    if not options and not root:
        raise ConfigurationError(
            [Problem("root", "which images? Add root=DIR, or data=... and data.*.")]
        )
    if not options:
        return from_directory(root)
    problems = []
    if not any(word.startswith("data=") for word in options):
        problems.append(Problem(options[0], "of which data set? Add data=..."))
    words = [*options, compose.word("data.root", root)] if root else list(options)
    composed, found = compose.compose_all(words)
    problems += found + check.node_problems(composed.config, "data")
    if problems:
        raise ConfigurationError(problems)
    return from_index(build.index(composed.config))


def out_problems(typed: str, out: Path) -> list[Problem]:
    """A page that could not be written: better said before the images are read."""
    where = f"out={typed}"
    if out.suffix != ".html" or out.is_dir():
        return [Problem(where, "must name a file that ends in .html.")]
    if not out.parent.is_dir():
        return [Problem(where, f"there is no directory {missing_part(out.parent)}.")]
    if not os.access(out.parent, os.W_OK):
        return [Problem(where, f"{out.parent} cannot be written. Give another place.")]
    return []


def examined(images: Labelled) -> list[Facts]:
    """Every file, in as many processes as this one may use cores."""
    start = time.perf_counter()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = examine_all([images.root / path for path in images.paths], workers or 1)
    seconds = max(time.perf_counter() - start, 1e-9)
    rate = len(facts) / seconds
    log.info("Read %s images in %.1f s: %.0f a second.", f"{len(facts):,}", seconds, rate)
    return facts


def show(images: Labelled, findings: Sequence[Finding]) -> None:
    """Print how many findings there are of each kind, what they mean, and the first of each."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("finding", ratio=2)
    table.add_column("first example", ratio=1, overflow="fold")
    for kind, count in counts_of(findings).items():
        first = next(finding for finding in findings if finding.kind == kind)
        examples = [images.paths[position] for position in first.images[:2]] or [first.detail]
        table.add_row(
            Text(kind.severity, STYLES[kind.severity]),
            f"{count:,}",
            Text.assemble((kind.title, "bold"), f"\n{kind.meaning} {kind.mend}"),
            Text("\n".join(map(one_line, examples))),
        )
    tables.show(table, escape(summary(images, findings)))


def summary(images: Labelled, findings: Sequence[Finding]) -> str:
    """One line: what was looked at, and how much was found."""
    looked = f"{len(images.paths):,} images of {len(set(images.classes)):,} classes"
    if not findings:
        return f"{one_line(images.name)}: {looked}, nothing found"
    totals = Counter(finding.kind.severity for finding in findings)
    counts = [f"{n:,} {severity}{'s' * (n != 1)}" for severity, n in totals.items()]
    return f"{one_line(images.name)}: {looked}: {', '.join(counts)}"


def as_dict(images: Labelled, findings: Sequence[Finding]) -> dict[str, Any]:
    """The whole report."""
    return {
        "data": images.name,
        "root": str(images.root),
        "images": len(images.paths),
        "classes": len(set(images.classes)),
        "counts": {kind.id: count for kind, count in counts_of(findings).items()},
        "kinds": [dataclasses.asdict(kind) for kind in counts_of(findings)],
        "findings": [
            {
                "kind": finding.kind.id,
                "severity": finding.kind.severity,
                "detail": finding.detail,
                "images": [
                    {
                        "path": images.paths[position],
                        "class": images.classes[position],
                        "split": images.splits[position] or None,
                    }
                    for position in finding.images
                ],
            }
            for finding in findings
        ],
        "left_out": list(images.left_out),
    }
