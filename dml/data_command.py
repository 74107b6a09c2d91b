"""`dml-data`: fetch, prove and look at data sets.  Imports no torch before there is something to show."""

import importlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table

from dml import build, tables
from dml.config import check, compose
from dml.data.fetch import manifest
from dml.data.fetch.download import RemoteFile
from dml.data.fetch.prepare import obtain
from dml.data.fetch.summary import Histogram, class_sizes, parts_of, size_histogram
from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, Problem, RunError
from dml.record import aside

log = logging.getLogger("dml")

HELP = """Fetch, check and look at data sets.

  dml-data prepare=cub200 root=DIR   fetch what is missing, prove it whole, unpack it, record its images
  dml-data check=cub200 root=DIR     compare what is there with that record, offline; changes nothing
  dml-data show=cub200 root=DIR      counts and class sizes, and pictures of both: a contact sheet of
                                     the classes and a histogram; out=DIR says where (else here)
  dml-data doctor root=DIR           find damaged, odd and duplicate images; see dml-data doctor --help

Any data set of `train.py data=...` will do, your own too:
  dml-data show=folder data.root=DIR     dml-data check=csv data.root=DIR data.labels=FILE

Options: root=DIR (the same as data.root=DIR), out=DIR, data.*
"""
ACTIONS = ("prepare", "check", "show")
SHOWN = 10  # lines of a list of damaged files


@dataclass
class Request:
    """What the words ask for.  words: those that compose the data group."""

    action: str = ""
    data: str = ""
    out: str = "."
    words: list[str] = field(default_factory=list)


def run(words: list[str]) -> int:
    """Do as the words say; returns the exit code.

    Raises ConfigurationError with everything wrong with the words, RunError where the work fails.
    """
    if not words or any(word in ("--help", "-h") for word in words):
        print(HELP)
        return 0 if words else 2
    if words[0] == "doctor":
        from dml.data.doctor import command as doctor

        return doctor.run(words[1:])
    request, problems = parsed(words)
    if not request.data:
        raise ConfigurationError(problems)
    composed, found = compose.compose_all(request.words)
    problems += found + check.node_problems(composed.config, "data")
    if problems:
        raise ConfigurationError(problems)
    as_published(composed.config, request.words)
    if request.action == "prepare":
        prepare(composed.config, f"prepare={request.data}")
    elif request.action == "check":
        check_only(composed.config, f"prepare={request.data}")
    else:
        show(composed.config, Path(request.out).expanduser())
    return 0


def parsed(words: list[str]) -> tuple[Request, list[Problem]]:
    """The words as a request, and what is wrong with them."""
    request, problems = Request(), []
    sets = compose.options_of("data")
    for word in words:
        key, equals, value = word.partition("=")
        if key in ACTIONS and equals and request.action:
            problems.append(Problem(word, f"{request.action}=... is asked for already."))
        elif key in ACTIONS and equals:
            request.action = key
            if value in sets:
                request.data = value
                request.words.append(f"data={value}")
            else:
                nearest = compose.nearest(value, sets, f"{key}=")
                problems.append(Problem(word, f"there is no data set {value!r}. {nearest}"))
        elif key == "root" and equals:
            request.words.append(compose.word("data.root", value))
        elif key == "out" and equals:
            request.out = value
        elif key.startswith("data.") and equals:
            request.words.append(word)
        else:
            nearest = compose.nearest(key, [*ACTIONS, "root", "out", "data.*"], "")
            problems.append(Problem(word, f"is no option of dml-data. {nearest}"))
    if not request.action:
        problems.append(Problem("dml-data", "what is to be done? See dml-data --help."))
    if request.action in ("prepare", "check") and request.out != ".":
        problems.append(Problem(f"out={request.out}", "belongs to show=... alone. Drop it."))
    return request, problems


def as_published(config: DictConfig, words: list[str]) -> None:
    """Leave the training classes of a published set together, unless a word says how to divide them."""
    if published_files(config) and not any(word.startswith("data.protocol=") for word in words):
        config.data.protocol = "standard_full"


def prepare(config: DictConfig, word: str) -> None:
    """Make the data set whole: prove what is there, bring what is not, record every image.

    word: what was typed.  Raises ConfigurationError or RunError where it cannot be done.
    """
    files = published_files(config)
    try:
        index = proven(config)
    except (ConfigurationError, RunError) as error:
        if not files:
            raise
        log.info("Not whole yet: %s", reasons(error)[0].rstrip(":"))
        obtain(files, root_of(config), word)
        index = proven(config)
    record = record_of(config, index)
    if not record.exists():
        written(record, manifest.content(index))
    found(index)
    log.info("\nIt is whole. Every image is recorded in %s.", record)


def check_only(config: DictConfig, word: str) -> None:
    """Prove what is there.

    word: what would mend it.  Raises RunError if it is incomplete or damaged, ConfigurationError if there
    is no such directory.
    """
    if config.data.root is not None and not root_of(config).is_dir():
        build.index(config)  # says so
    try:
        index = proven(config)
    except ConfigurationError as error:
        raise RunError("\n".join(reasons(error))) from error
    found(index)
    record = record_of(config, index)
    if record.exists():
        log.info("\nEvery image is as recorded in %s.", record)
    else:
        log.info(
            "\nNames and counts are right. There is no record to compare the images themselves "
            "with; dml-data %s makes one.",
            word,
        )


def show(config: DictConfig, out: Path) -> None:
    """Print counts and class sizes, and make the pictures."""
    index = build.index(config)
    parts = parts_of(index)
    found(index)
    sizes = size_histogram({name: class_sizes(index, of) for name, of in parts.items()})
    tables.show(histogram_table(sizes), "\nClasses by their number of images")
    from dml.data.fetch import pictures

    for kind, picture in (
        ("images", pictures.contact_sheet(index, parts)),
        ("class_sizes", pictures.histogram(sizes, index.name)),
    ):
        path = written(out / f"{index.name}_{kind}.png", pictures.png(picture))
        log.info("Picture: %s", path)


def written(path: Path, content: bytes) -> Path:
    """Write a file aside, then rename it.  Raises RunError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside(path) as file:
            file.write(content)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror or error}).") from error
    return path


def published_files(config: DictConfig) -> tuple[RemoteFile, ...]:
    """The files that a data set's module lists; none for the user's own data."""
    module, _, _ = str(config.data._target_).rpartition(".")
    return getattr(importlib.import_module(module), "FILES", ())


def root_of(config: DictConfig) -> Path:
    """The directory that the user gave."""
    return Path(config.data.root).expanduser().absolute()


def record_of(config: DictConfig, index: ImageIndex) -> Path:
    """Where the record of its images lies: at the root, or beside an embedded set's directory."""
    root = index.root.parent if config.data.root is None else root_of(config)
    return manifest.file_of(index, root)


def proven(config: DictConfig) -> ImageIndex:
    """The data set, if its lists, counts and files are right and, once recorded, unchanged.

    Raises ConfigurationError of its `load`, RunError listing the images that differ.
    """
    index = build.index(config)
    record = record_of(config, index)
    differing = manifest.differences(index, record) if record.exists() else []
    if differing:
        many = f"{len(differing):,} images differ" if len(differing) > 1 else "1 image differs"
        lines = [f"{many} from {record}:"]
        lines += [f"  {line}" for line in differing[:SHOWN]]
        lines += [f"  and {len(differing) - SHOWN:,} more"] if len(differing) > SHOWN else []
        lines.append(
            "dml-data prepare=... gets a published set again. If the change is meant, remove the "
            "record first."
        )
        raise RunError("\n".join(lines))
    return index


def reasons(error: ConfigurationError | RunError) -> list[str]:
    """The lines of an error, without the heading about the configuration."""
    if isinstance(error, RunError):
        return str(error).splitlines()
    return [
        line
        for problem in error.problems
        for line in f"{problem.where} {problem.what}".splitlines()
    ]


def found(index: ImageIndex) -> None:
    """Print the parts of a data set: images, classes, class sizes, and the first and last images."""
    parts = parts_of(index)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("split")
    for column in ("images", "classes", "least per class", "median", "most"):
        table.add_column(column, justify="right")
    lines = ["", "The first and last of each"]
    width = max(map(len, parts))
    for name, positions in parts.items():
        sizes = class_sizes(index, positions)
        numbers = (len(positions), len(sizes), sizes.min(), int(np.median(sizes)), sizes.max())
        table.add_row(name, *(f"{number:,}" for number in numbers))
        for row, position in (("first", positions[0]), ("last ", positions[-1])):
            class_name = index.class_names[index.labels[position]]
            lines.append(f"{name:{width}}  {row}  {index.paths[position]}  ({class_name})")
    classes = len(np.unique(index.labels))
    head = f"{index.name}: {len(index.labels):,} images of {classes:,} classes in {index.root}"
    tables.show(table, escape(head), escape("\n".join(lines)))


def histogram_table(sizes: Histogram) -> Table:
    """Bars: how many classes have how many images, part beside part."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("images", justify="right")
    for name in sizes.counts:
        table.add_column(f"{name}, classes")
    for label, *counts in zip(sizes.labels(), *sizes.counts.values(), strict=True):
        table.add_row(label, *(bar(count, sizes.most) for count in counts))
    return table


def bar(count: int, most: int, width: int = 16) -> str:
    """`█████ 12`; something for every count above 0."""
    if not count:
        return ""
    return "█" * max(round(count / most * width), 1) + f" {count}"
