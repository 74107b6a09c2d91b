"""What can be wrong with a labelled set of images, and what it means for training and evaluation."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dml.data.doctor import duplicates
from dml.data.doctor.examine import ELONGATED, GIGANTIC, TINY, Facts
from dml.data.doctor.images import Labelled
from dml.data.index import shortened

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Kind:
    """A kind of finding: what it means, and what to do."""

    id: str
    severity: str
    title: str
    meaning: str
    mend: str


@dataclass(frozen=True)
class Finding:
    """images: positions of the images it is about."""

    kind: Kind
    images: tuple[int, ...]
    detail: str


# By severity, the most important first: the order of every report.
KINDS = (
    Kind(
        "unreadable",
        "error",
        "Unreadable files",
        "Training stops there, or leaves them out (data.on_bad_image=skip).",
        "Replace or remove them.",
    ),
    Kind(
        "truncated",
        "error",
        "Truncated or damaged images",
        "Their pixels cannot be decoded. Training stops there, or leaves them out "
        "(data.on_bad_image=skip).",
        "Fetch or copy them again, or remove them.",
    ),
    Kind(
        "same_in_splits",
        "error",
        "The same picture in several splits",
        "Leakage: what is measured was seen in training, or a query finds its own copy.",
        "Keep it in one split.",
    ),
    Kind(
        "same_in_classes",
        "error",
        "The same picture under several labels",
        "Label collision: training pulls and pushes it at once, and no answer to it is right.",
        "Keep the right label, or remove it.",
    ),
    Kind(
        "similar_in_splits",
        "warning",
        "Nearly the same picture in several splits",
        "Leakage, if it is one photograph: what is measured was all but seen in training.",
        "Look at them; keep each photograph in one split.",
    ),
    Kind(
        "similar_in_classes",
        "warning",
        "Nearly the same picture under several labels",
        "One of the labels is wrong, if it is one photograph.",
        "Look at them; keep the right label.",
    ),
    Kind(
        "same_in_class",
        "warning",
        "Copies within a class",
        "A copy is a positive that teaches nothing and a neighbour that is always found: Recall@1 "
        "comes out too high.",
        "Keep one of each.",
    ),
    Kind(
        "one_image",
        "warning",
        "Classes with one image",
        "Alone, it has no positive: pair losses and samplers cannot use it, and as a query it is left "
        "out of the metrics.",
        "Add images, remove the class, or add sampler.small_classes=skip.",
    ),
    Kind(
        "alike_names",
        "warning",
        "Class names that differ in case or blanks alone",
        "They count as different classes: images of one thing are pushed apart.",
        "Give them one name, or tell them apart.",
    ),
    Kind(
        "exif_rotated",
        "warning",
        "Rotated by EXIF",
        "Training ignores EXIF, as the published results do: it sees them turned or mirrored, unlike an "
        "image viewer.",
        "Write the rotation into the pixels (ImageOps.exif_transpose).",
    ),
    Kind(
        "transparent",
        "warning",
        "Transparent images",
        "Transparency is dropped: what shows is whatever colour lies below it, often black.",
        "Lay them over a background of your choice, and save them without transparency.",
    ),
    Kind(
        "blank",
        "warning",
        "Pictures of one colour",
        "There is nothing to see in them as RGB; often a placeholder, or numbers that are no colours.",
        "Remove or replace them.",
    ),
    Kind(
        "tiny",
        "warning",
        f"Tiny images (a side below {TINY} pixels)",
        "They are enlarged many times; little is to be learnt from them.",
        "Look whether they are thumbnails or bad crops; fetch larger ones, or remove them.",
    ),
    Kind(
        "elongated",
        "warning",
        f"Long images (sides beyond {ELONGATED} : 1)",
        f"The centre crop of the evaluation sees less than 1/{ELONGATED} of them.",
        "Crop them to what the label is about.",
    ),
    Kind(
        "left_out",
        "note",
        "Files that are not read",
        "Neither training nor this report looks at them: their extension is not read, or they lie "
        "outside the class directories.",
        "If they are images, save them as JPEG or PNG within their class.",
    ),
    Kind(
        "similar_in_class",
        "note",
        "Nearly the same picture within a class",
        "One photograph saved twice, or two of a moment: easy positives, Recall@1 comes out a little "
        "too high.",
        "Look at them; keep one of each photograph.",
    ),
    Kind(
        "greyscale",
        "note",
        "Greyscale images",
        "They become RGB with three equal channels: without colour, for training too.",
        "Nothing, if they are meant; the benchmarks contain some.",
    ),
    Kind(
        "cmyk",
        "note",
        "CMYK images",
        "They become RGB without their colour profile: colours may differ from a viewer's.",
        "Save them as RGB with a program that knows the profile.",
    ),
    Kind(
        "palette",
        "note",
        "Palette images",
        "They become RGB; at most 256 colours were kept when they were saved.",
        "Nothing, unless the originals are at hand.",
    ),
    Kind(
        "sixteen_bit",
        "note",
        "More than 8 bits a channel",
        "They are reduced to 8 bits: whole numbers lose their lower bits, fractions are cut off.",
        "If that loses what matters, scale them to 8 bits yourself.",
    ),
    Kind(
        "animated",
        "note",
        "Several frames or pages",
        "The first alone is read.",
        "If the others matter, save each as an image.",
    ),
    Kind(
        "wrong_extension",
        "note",
        "An extension that is not the content's",
        "Training reads the content and is not misled; other programs may be.",
        "Rename them.",
    ),
    Kind(
        "metadata",
        "note",
        "Damaged metadata",
        "The pixels are read; rotation, frames and transparency could not be looked at.",
        "Save them again.",
    ),
    Kind(
        "gigantic",
        "note",
        f"Gigantic images (above {GIGANTIC // 10**6} megapixels)",
        "They take long to decode, in every epoch.",
        "Save a smaller copy.",
    ),
)
KIND = {kind.id: kind for kind in KINDS}


def all_findings(images: Labelled, facts: Sequence[Facts]) -> list[Finding]:
    """Everything there is to say, in the order of `KINDS`, then of the images."""
    found = [
        Finding(KIND[kind], (position,), detail)
        for position, fact in enumerate(facts)
        for kind, detail in fact.defects
    ]
    found += same_pictures(images, facts) + similar_pictures(images, facts)
    found += class_findings(images) + left_out_finding(images)
    return sorted(found, key=lambda finding: (KINDS.index(finding.kind), finding.images))


def same_pictures(images: Labelled, facts: Sequence[Facts]) -> list[Finding]:
    """Groups of identical pixels."""
    readable = [position for position, fact in enumerate(facts) if fact.readable]
    found = []
    for group in duplicates.same(facts[position].pixel_digest for position in readable):
        positions = [readable[place] for place in group]
        if len({facts[position].file_digest for position in positions}) == 1:
            detail = "identical files"
        else:
            formats = sorted({facts[position].format for position in positions} - {""})
            detail = f"identical pixels in different files ({', '.join(formats)})"
        found += relations(images, "same", positions, detail)
    return found


def similar_pictures(images: Labelled, facts: Sequence[Facts]) -> list[Finding]:
    """Groups of nearly the same picture; of identical ones, the first stands for all."""
    once = {fact.pixel_digest: at for at, fact in reversed(list(enumerate(facts))) if fact.readable}
    positions = sorted(once.values())
    if not positions:
        return []
    hashes, small = (
        np.frombuffer(b"".join(column), np.uint8).reshape(len(positions), -1)
        for column in zip(*((facts[at].phash, facts[at].small) for at in positions), strict=True)
    )
    found = []
    for group in duplicates.similar(hashes, small):
        detail = f"hashes differ in {duplicates.bits_apart(hashes, group)} of 256 bits"
        found += relations(images, "similar", [positions[place] for place in group], detail)
    return found


def relations(images: Labelled, likeness: str, group: Sequence[int], detail: str) -> list[Finding]:
    """What a group of the same picture is: across splits, across classes, or neither."""
    splits = {images.splits[position] for position in group} - {""}
    classes = {images.classes[position] for position in group}
    kinds = ["in_splits"] * (len(splits) > 1) + ["in_classes"] * (len(classes) > 1)
    return [
        Finding(KIND[f"{likeness}_{kind}"], tuple(group), detail) for kind in kinds or ["in_class"]
    ]


def class_findings(images: Labelled) -> list[Finding]:
    """Classes of one image, and names that look alike."""
    sizes = Counter(images.classes)
    first = {name: at for at, name in reversed(list(enumerate(images.classes)))}
    found = [
        Finding(KIND["one_image"], (first[name],), f"class {name}")
        for name, size in sizes.items()
        if size == 1
    ]
    names = sorted(sizes)
    for group in duplicates.same(map(plain, names)):
        alike = [names[place] for place in group]
        detail = " and ".join(f"{name!r} (images: {sizes[name]})" for name in alike)
        found.append(Finding(KIND["alike_names"], tuple(first[name] for name in alike), detail))
    return found


def plain(name: str) -> str:
    """A name without differences that the eye overlooks: case, blanks, forms of Unicode."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def left_out_finding(images: Labelled) -> list[Finding]:
    """One finding about all files that are not taken for images."""
    if not images.left_out:
        return []
    endings = Counter(Path(path).suffix.lower() for path in images.left_out)
    counts = [f"{n} {ending or 'without extension'}" for ending, n in endings.most_common()]
    detail = f"{shortened(counts)}: {shortened(images.left_out, 3)}"
    return [Finding(KIND["left_out"], (), detail)]


def counts_of(findings: Iterable[Finding]) -> dict[Kind, int]:
    """How many findings there are of each kind that was found, in the order of `KINDS`."""
    return dict(Counter(finding.kind for finding in findings))
