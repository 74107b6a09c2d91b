"""Templates of self-contained pages: styles and scripts within, nothing fetched, everything escaped."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from markupsafe import Markup, escape

from dml.data.doctor.page import one_line


def render(template: str, scripts: tuple[str, ...], **context: Any) -> str:
    """A page.  scripts: files of the templates folder that it runs; its policy allows no others."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dml.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"one_line": one_line, "thousands": "{:,}".format, "signed": signed}
    environment.filters["breakable"] = breakable
    texts = {name: content(name) for name in scripts}
    digests = " ".join(f"'sha256-{digest(text)}'" for text in texts.values())
    return environment.get_template(template).render(
        style=Markup(content("style.css")),
        scripts={name: Markup(text) for name, text in texts.items()},
        script_hashes=Markup(digests),
        **context,
    )


def breakable(text: str) -> Markup:
    """A name that may go on in the next line after any of its underscores and slashes."""
    escaped = str(escape(one_line(text)))
    return Markup(escaped.replace("_", "_<wbr>").replace("/", "/<wbr>"))


def signed(value: float, digits: int) -> str:
    """A difference, with a sign as wide as a digit."""
    return f"{value:+.{digits}f}".replace("-", "−")


def content(name: str) -> str:
    """Text of a file of the templates folder."""
    return (files("dml.report") / "templates" / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """SHA-256 as a content security policy writes it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
