"""The doctor's report as one HTML file, with the images it is about."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dml.data.doctor.duplicates import CORRELATION, HASH_BITS
from dml.data.doctor.findings import SEVERITIES, Finding, Kind, counts_of
from dml.data.doctor.images import Labelled

# 22 sections of 32 pictures of at most 12 kB (noise at 120 x 120, as text): below 10 MB in any case.
THUMBNAIL = 120  # pixels of the longer side
PICTURES = 32  # of a section
OF_FINDING = 4  # pictures of one finding


@dataclass(frozen=True)
class Picture:
    """src: a data URL, or "" where the image cannot be read."""

    src: str
    path: str
    class_name: str
    split: str


@dataclass(frozen=True)
class Shown:
    """A finding on the page; more: how many of its images are left out."""

    detail: str
    pictures: list[Picture]
    more: int


@dataclass(frozen=True)
class Section:
    """The findings of a kind; more: how many of them are left out."""

    kind: Kind
    count: int
    shown: list[Shown]
    more: int


def write_page(images: Labelled, findings: Sequence[Finding], path: Path) -> int:
    """Write the page aside, then rename it; returns how many findings only the JSON lists.

    Raises OSError if it cannot be written.
    """
    sections = [section(images, findings, kind) for kind in counts_of(findings)]
    text = page(images, sections)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return sum(section.more for section in sections)


def page(images: Labelled, sections: Sequence[Section]) -> str:
    """The sections as HTML, everything escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"one_line": one_line, "thousands": "{:,}".format}
    template = files("dml.data.doctor").joinpath("page.html.j2").read_text(encoding="utf-8")
    splits = {name: images.splits.count(name) for name in dict.fromkeys(images.splits) if name}
    return environment.from_string(template).render(
        name=images.name,
        images=len(images.paths),
        classes=len(set(images.classes)),
        splits=splits,
        sections=sections,
        hash_bits=HASH_BITS,
        correlation=CORRELATION,
        severities={
            severity: sum(s.count for s in sections if s.kind.severity == severity)
            for severity in SEVERITIES
        },
    )


def section(images: Labelled, findings: Sequence[Finding], kind: Kind) -> Section:
    """The findings of a kind, with as many as there is room for."""
    of_kind = [finding for finding in findings if finding.kind == kind]
    shown, room = [], PICTURES
    for finding in of_kind:
        chosen = telling(images, finding)
        if room < len(chosen):
            break
        room -= len(chosen)
        pictures = [picture(images, position) for position in chosen]
        shown.append(Shown(finding.detail, pictures, len(finding.images) - len(chosen)))
    return Section(kind, len(of_kind), shown, len(of_kind) - len(shown))


def telling(images: Labelled, finding: Finding) -> list[int]:
    """The images of a finding that are shown: of each class and split one before others."""
    seen, first, others = set(), [], []
    for position in finding.images:
        place = images.classes[position], images.splits[position]
        (others if place in seen else first).append(position)
        seen.add(place)
    return (first + others)[:OF_FINDING]


def picture(images: Labelled, position: int) -> Picture:
    """A thumbnail of an image as training reads it."""
    from dml.data.decode import UnreadableImage, open_rgb  # imports torch

    try:
        thumbnail, data = open_rgb(images.root / images.paths[position]), io.BytesIO()
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        thumbnail.save(data, "JPEG", quality=75)
        src = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    except UnreadableImage:  # that is what the finding is about
        src = ""
    return Picture(src, images.paths[position], images.classes[position], images.splits[position])


def one_line(text: str) -> str:
    """A file's or class's name for the eye: what cannot be shown, or would move other text, replaced."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
