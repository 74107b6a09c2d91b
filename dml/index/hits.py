"""What a search gives back."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """One searchable image.

    path: posix, relative to the folder it was indexed from.  label: its class, or None.  file: the file
    inside that folder, or None where it is gone or there is no folder.
    """

    row: int
    path: str
    label: str | None
    file: Path | None


@dataclass(frozen=True)
class Hit:
    """An item as the answer to a query.

    rank: from 1.  score: larger is nearer; a cosine, an inner product, or minus a Euclidean distance.
    same: whether the score reaches the calibrated threshold; None where there is none.
    """

    rank: int
    score: float
    row: int
    path: str
    label: str | None
    file: Path | None
    same: bool | None


@dataclass(frozen=True)
class Calibration:
    """A threshold for "the same thing or not", and what is to be expected of it.

    threshold: on the scale of scores; at it or above means the same.  target: the false-match rate asked
    for.  fmr: share of pairs of different classes that are called the same (ISO/IEC 19795-1), at most
    the target.  fnmr: share of pairs of one class that are called different.  Each with its 95 % interval
    over classes.  images, classes: what it was measured on; source says where they came from.
    """

    threshold: float
    target: float
    fmr: float
    fmr_interval: tuple[float, float]
    fnmr: float
    fnmr_interval: tuple[float, float]
    images: int
    classes: int
    source: str

    def sentence(self) -> str:
        """The threshold and its expected errors in words."""
        return (
            f"Same from a score of {self.threshold:.4f}: of pairs of different classes "
            f"{percent(self.fmr)} [{percent(self.fmr_interval[0])}, {percent(self.fmr_interval[1])}] "
            f"pass for the same, of pairs of one class {percent(self.fnmr)} "
            f"[{percent(self.fnmr_interval[0])}, {percent(self.fnmr_interval[1])}] for different "
            f"(95 % intervals over {self.classes:,} classes, {self.images:,} images of {self.source})."
        )


def percent(share: float) -> str:
    """A share with three digits that tell."""
    return f"{100 * share:.3g} %"
