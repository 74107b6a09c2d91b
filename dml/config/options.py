"""Words of a command line as values: `key=value`, each key with the kind of value it takes."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dml.config import compose
from dml.errors import Problem

Parser = Callable[[str], Any]  # raises ValueError with what the value must be


def parsed(
    command: str, words: Sequence[str], options: Mapping[str, Parser]
) -> tuple[dict[str, Any], list[Problem]]:
    """The values that were given, and what is wrong with the words."""
    given: dict[str, Any] = {}
    problems = []
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            problems.append(Problem(word, "is no flag. Options are written key=value; see --help."))
        elif key not in options:
            guess = compose.nearest(key, list(options), "")
            problems.append(Problem(word, f"is no option of {command}. {guess}"))
        elif not equals or not value:
            problems.append(Problem(word, f"needs a value: {key}=..."))
        elif key in given:
            problems.append(Problem(word, f"{key}=... is given twice."))
        else:
            try:
                given[key] = options[key](value)
            except ValueError as error:
                problems.append(Problem(word, str(error)))
    return given, problems


def text(value: str) -> str:
    """Any text."""
    return value


def whole(least: int, most: int | None = None) -> Parser:
    """A whole number in [least, most]."""

    def parse(value: str) -> int:
        bounds = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"must be a whole number {bounds}.") from None
        if number < least or (most is not None and number > most):
            raise ValueError(f"must be a whole number {bounds}.")
        return number

    return parse


def share(value: str) -> float:
    """A number in (0, 1)."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < 1:
        raise ValueError("must be a number in (0, 1).")
    return number


def one_of(*words: str) -> Parser:
    """One of some words."""

    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}.")
        return value

    return parse


def truth(value: str) -> bool:
    """`true` or `false`."""
    return one_of("true", "false")(value) == "true"


def several(value: str) -> list[str]:
    """One text, or `[a,b]`; names with commas as JSON: `["a,b","c"]`."""
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    try:
        found = json.loads(value)
    except ValueError:
        found = [item.strip() for item in value[1:-1].split(",") if item.strip()]
    if not found or not all(isinstance(item, str) for item in found):
        raise ValueError('must be one name, or several: [a,b]; with commas in them: ["a,b","c"].')
    return found
