"""Search results as one HTML file, with the pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dml.index.hits import Hit
from dml.index.searchable import Searchable
from dml.record import aside

SIDE = 200  # pixels of the longer side of a picture


@dataclass(frozen=True)
class Answer:
    """A query and what was found.

    name: as it was given.  label: its class, where it is an image of the index; else None.  picture: its
    file, or None for a vector.
    """

    name: str
    label: str | None
    picture: Path | None
    hits: list[Hit]


def write_page(
    answers: Sequence[Answer], index: Searchable, told: Sequence[str], path: Path
) -> None:
    """Write the page aside, then rename it.

    told: what is said of the search as a whole, a paragraph each.  Raises OSError if it cannot be written.
    """
    text = page(answers, index, told)
    with aside(path) as file:
        file.write(text.encode("utf-8", "replace"))


def page(answers: Sequence[Answer], index: Searchable, told: Sequence[str]) -> str:
    """The answers as HTML, everything escaped, pictures included."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    from dml.index.pictures import data_url

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)

    def breakable(text: str) -> Markup:
        """A long name that a narrow column may break after its underscores and slashes."""
        return Markup(re.sub("([_/])", r"\1<wbr>", str(escape(one_line(text)))))

    environment.filters |= {"one_line": one_line, "breakable": breakable}
    environment.filters["thousands"] = "{:,}".format
    environment.globals["picture"] = lambda source: data_url(source, SIDE)
    template = files("dml.index").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        answers=answers,
        images=len(index),
        name=index.path.name,
        told=told,
        threshold=None if index.calibration is None else index.calibration.threshold,
    )


def one_line(text: str) -> str:
    """A name for the eye: what cannot be shown, or would move other text, replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
