"""The user's own images, listed in a file: columns path, label and, where wanted, class_name and split."""

import csv
import posixpath
from collections import Counter
from pathlib import Path

import numpy as np

from dml.data.files import missing_files, missing_part
from dml.data.index import SPLITS, ImageIndex, shortened
from dml.data.protocols import (
    completed_splits,
    fraction_problems,
    own_val_problems,
    protocol_problems,
    split_problems,
)
from dml.errors import ConfigurationError, Problem


def load(
    *,
    root: str | None,
    labels: str | None,
    name: str = "csv",
    protocol: str = "standard",
    seed: int = 0,
    test_fraction: float = 0.5,
    val_fraction: float = 0.1,
    fold: int | None = None,
    folds: int = 4,
) -> ImageIndex:
    """Index the images that the file `labels` (within `root`, or absolute) lists.

    path: within `root`, or absolute.  label: any word or number; equal labels are one class.
    class_name: what the class is called (else its label).  split: train, val or test.  Other columns are
    left out.  Without the column split, whole classes are dealt by `seed`: `test_fraction` of all to
    test.  Without a val row, `val_fraction` of the training classes becomes val (0: none).  Other
    protocols: `dml.data.protocols`.

    Raises ConfigurationError with every problem found in the file: columns or cells missing, images
    missing or listed twice, unknown split words, a class in two splits, too few classes.
    """
    problems = fraction_problems(test_fraction)
    problems += protocol_problems(protocol, val_fraction, fold, folds)
    directory = Path(root or "").expanduser().absolute()
    file = directory / Path(labels or "").expanduser()
    if not root:
        problems.append(Problem("data.root", "has no value. Add data.root=DIR, your images."))
    elif not directory.is_dir():
        what = (
            "is no directory." if directory.exists() else f"there is no {missing_part(directory)}."
        )
        problems.append(Problem(f"data.root={root}", what))
    if not labels:
        problems.append(
            Problem(
                "data.labels", "has no value. Add data.labels=FILE, with columns path and label."
            )
        )
    elif (root or Path(labels).is_absolute()) and not file.is_file():
        beside = sorted(f.name for f in directory.glob("*.csv")) if directory.is_dir() else []
        hint = f"\nIn {directory} there is {shortened(beside)}." if beside else ""
        problems.append(Problem(f"data.labels={labels}", f"there is no file {file}.{hint}"))
    if problems:
        raise ConfigurationError(problems)
    where = f"data.labels={labels}"
    rows, columns = _read(file, where)
    paths, words = [row[columns["path"]].strip() for row in rows], None
    class_words = [row[columns["label"]].strip() for row in rows]
    problems = _cell_problems(paths, class_words, where)
    paths = [posixpath.normpath(path) if path else path for path in paths]
    problems += _twice_problems(paths, where)
    problems += _missing_problems(directory, paths, where)
    if "split" in columns:
        words = np.array([row[columns["split"]].strip().lower() for row in rows])
        problems += _word_problems(words, where)
    unique = sorted(set(class_words), key=_natural)
    number = {word: position for position, word in enumerate(unique)}
    class_numbers = np.array([number[word] for word in class_words], dtype=np.int64)
    names = unique
    if "class_name" in columns:
        given_names = [row[columns["class_name"]].strip() for row in rows]
        names, name_problems = _class_names(unique, class_numbers, given_names, where)
        problems += name_problems
    given = None
    if words is not None:
        given = {s: np.flatnonzero(words == s).astype(np.int64) for s in SPLITS if s in words}
    splits = completed_splits(
        given,
        class_numbers,
        seed=seed,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        protocol=protocol,
        fold=fold,
        folds=folds,
    )
    problems += own_val_problems(given, protocol)
    closed_set = protocol == "closed_set"
    # A wrong split word would make classes seem absent: said once, by its own problem.
    if words is None or np.isin(words, SPLITS).all():
        own = given is not None
        problems += split_problems(splits, class_numbers, names, where, own, closed_set)
    if problems:
        raise ConfigurationError(problems)
    names = tuple(names)
    return ImageIndex(
        name, directory, np.array(paths), class_numbers, names, splits, closed_set=closed_set
    )


def _read(file: Path, where: str) -> tuple[list[list[str]], dict[str, int]]:
    """Rows without the header, and column name -> position."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(
            [Problem(where, f"cannot be read as CSV in UTF-8 ({error}).\nSave it as CSV, UTF-8.")]
        ) from error
    if not lines:
        raise ConfigurationError(
            [Problem(where, "is empty. Its first line must name the columns: path,label")]
        )
    header = [column.strip() for column in lines[0]]
    lacking = [column for column in ("path", "label") if column not in header]
    if lacking:
        raise ConfigurationError(
            [
                Problem(
                    where,
                    f"has no column {' and no column '.join(lacking)}; it has {', '.join(header)}.\n"
                    "The first line must name the columns, separated by commas: path,label",
                )
            ]
        )
    rows = [row for row in lines[1:] if row]
    if not rows:
        raise ConfigurationError([Problem(where, "lists no images: nothing follows the header.")])
    ragged = [n for n, row in enumerate(rows, 2) if len(row) != len(header)]
    if ragged:
        raise ConfigurationError(
            [
                Problem(
                    where,
                    f"{_rows(ragged)} not as many cells as the header ({len(header)}).\n"
                    'Put cells that hold a comma in quotes: "a,b.jpg"',
                )
            ]
        )
    return rows, {column: position for position, column in enumerate(header)}


def _rows(numbers: list[int], verb: str = "has") -> str:
    """`row 7 has` or `rows 7, 9 and 3 more have`; the header is row 1."""
    if len(numbers) == 1:
        return f"row {numbers[0]} {verb}"
    return f"rows {shortened([str(n) for n in numbers])} {'have' if verb == 'has' else verb}"


def _cell_problems(paths: list[str], labels: list[str], where: str) -> list[Problem]:
    problems = []
    for column, cells in (("path", paths), ("label", labels)):
        blank = [n for n, cell in enumerate(cells, 2) if not cell]
        if blank:
            problems.append(Problem(where, f"{_rows(blank)} no {column}. Fill in or remove it."))
        odd = [n for n, cell in enumerate(cells, 2) if "\0" in cell]
        if odd:
            what = f"{_rows(odd)} a null character in its {column}: {cells[odd[0] - 2]!r:.80}."
            problems.append(Problem(where, f"{what}\nWrite it anew; the file was saved wrongly."))
    return problems


def _twice_problems(paths: list[str], where: str) -> list[Problem]:
    """An image listed twice would be its own neighbour in the evaluation."""
    first: dict[str, int] = {}
    again = [
        f"{path} (rows {first[path]} and {n})"
        for n, path in enumerate(paths, 2)
        if first.setdefault(path, n) != n and path
    ]
    if not again:
        return []
    return [
        Problem(
            where,
            f"{len(again)} images are listed twice: {shortened(again, 3)}.\n"
            "An image has one row; it would be found as its own neighbour. Remove the others.",
        )
    ]


def _missing_problems(directory: Path, paths: list[str], where: str) -> list[Problem]:
    """Images that are not there."""
    gone = [p for p in missing_files(directory, paths) if "\0" not in paths[p]]  # told already
    missing = [f"{paths[p]} (row {p + 2})" for p in gone]
    if not missing:
        return []
    return [
        Problem(
            where,
            f"{len(missing)} of {len(paths)} images are missing from {directory}: "
            f"{shortened(missing, 3)}.\n"
            "Paths start at data.root; correct that option, the paths, or remove the rows.",
        )
    ]


def _word_problems(words: np.ndarray, where: str) -> list[Problem]:
    unknown = np.flatnonzero(~np.isin(words, SPLITS))
    if len(unknown) == 0:
        return []
    seen = sorted({repr(str(word)) for word in words[unknown]})
    return [
        Problem(
            where,
            f"{_rows([int(n) + 2 for n in unknown])} the unknown split {shortened(seen)}.\n"
            "A split is train, val or test; without the column, classes are split by data.seed.",
        )
    ]


def _class_names(
    labels: list[str], numbers: np.ndarray, given: list[str], where: str
) -> tuple[list[str], list[Problem]]:
    """Names of the classes; a label of two names is a problem, a name of two labels is told apart."""
    names_of: list[dict[str, None]] = [{} for _ in labels]
    for number, name in zip(numbers, given, strict=True):
        if name:
            names_of[number][name] = None
    twofold = [
        f"{label} ({', '.join(names)})"
        for label, names in zip(labels, names_of, strict=True)
        if len(names) > 1
    ]
    problems = []
    if twofold:
        problems.append(
            Problem(
                where,
                f"{len(twofold)} labels have more than one class_name: {shortened(twofold, 3)}.\n"
                "Rows with the same label are one class; give them one name.",
            )
        )
    names = [next(iter(names), label) for names, label in zip(names_of, labels, strict=True)]
    uses = Counter(names)
    return [
        f"{name} ({label})" if uses[name] > 1 else name
        for name, label in zip(names, labels, strict=True)
    ], problems


def _natural(word: str) -> tuple[int, int, str]:
    """Numbers by value and before words: 2 < 10 < a."""
    return (0, int(word), word) if word.isascii() and word.isdigit() else (1, 0, word)
