"""The names of all metrics: the one list, which configuration is checked against. Torch-free."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from dml.evaluation.clusters import CLUSTERS
from dml.evaluation.diagnostics import DIAGNOSTICS
from dml.evaluation.legacy import LEGACY
from dml.evaluation.metrics import RANKED, Ranked
from dml.evaluation.ranks import Depth
from dml.evaluation.verification import VERIFICATION

# Each family's functions take one kind of data: Ranks, PairCounts, Clustering, Pairs.
FAMILIES: dict[str, dict[str, Any]] = {
    "ranks": RANKED | LEGACY,
    "verification": VERIFICATION,
    "clusters": CLUSTERS,
    "diagnostics": DIAGNOSTICS,
}
NO_FRACTION = {"ami", "alignment", "uniformity", "rho_spectrum", "intra_inter"}
NO_AIM = {"fnmr@fmr=x", *DIAGNOSTICS}  # less of it is better, or it only describes

# What stands for k and x in a name.
WHOLE, SHARE = "([1-9][0-9]{0,17})", r"([0-9]*\.?[0-9]+(?:e-[0-9]{1,2})?)"


@dataclass(frozen=True)
class Metric:
    """A metric that was asked for by name.

    key: its entry in FAMILIES[family].  compute: a function of the family's data.  depth: how deep
    ranks must be known (None outside the family "ranks").  lone: the value of a query without a
    positive; nan leaves it out.
    """

    key: str
    family: str
    compute: Callable[[Any], Any]
    depth: Depth | None = None
    lone: float = math.nan

    @property
    def is_aim(self) -> bool:
        """Whether more of it is better, so that it can choose a checkpoint."""
        return self.key not in NO_AIM


def parse(name: str) -> Metric:
    """The metric of a name.

    Names are the keys of FAMILIES, with a positive whole number for k and a number between 0 and 1 for
    x: "recall@1", "map@r", "fnmr@fmr=1e-3".  Raises ValueError, naming the nearest legal names.
    """
    for family, entries in FAMILIES.items():
        for key, entry in entries.items():
            match = _pattern(key).fullmatch(name) if isinstance(name, str) else None
            if match and not match.groups():
                return _metric(key, family, entry)
            if match and "@k" in key:
                return _metric(key, family, entry, int(match[1]))
            if match and 0 < Fraction(match[1]) < 1:
                return _metric(key, family, entry, Fraction(match[1]))
    raise ValueError(_unknown(str(name)))


def is_fraction(name: str) -> bool:
    """Whether values of a metric lie in [0, 1]; so do those of names that are not known."""
    return not any(_pattern(key).fullmatch(name) for key in NO_FRACTION)


def _pattern(key: str) -> re.Pattern:
    pattern = re.escape(key).replace("@k", f"@{WHOLE}")
    return re.compile(re.sub("([@=])x$", lambda sign: sign[1] + SHARE, pattern))


def _metric(key: str, family: str, entry: Any, number: int | Fraction | None = None) -> Metric:
    """The metric of an entry of FAMILIES and the number in its name."""
    function = entry.function if isinstance(entry, Ranked) else entry
    compute = function if number is None else lambda data: function(data, number)
    if not isinstance(entry, Ranked):
        return Metric(key, family, compute)
    deep = 1 << 62 if number is None else int(number)  # the whole ranking, if no k says otherwise
    depth = Depth(
        best=0 if entry.depth == "relevant" else deep,
        others=deep if entry.depth == "all" else 0,
        relevant=entry.depth == "relevant",
    )
    return Metric(key, family, compute, depth, entry.lone)


def _unknown(name: str) -> str:
    keys = [key for entries in FAMILIES.values() for key in entries]
    known = re.sub(r"@[0-9]+(?=_|$)", "@k", name.lower().strip())
    known = re.sub(r"(?<==)[0-9.e-]+$", "x", known)
    near = [key for key in keys if key == f"legacy/{known}"]
    near = near or get_close_matches(known, keys, n=3, cutoff=0.5) or list(RANKED)
    notes = []
    if any("@k" in key for key in near):
        notes.append("k a positive whole number, for example recall@10")
    if any(key.endswith("x") for key in near):
        notes.append("x a number between 0 and 1, for example fnmr@fmr=1e-3")
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"unknown metric {name!r}; the nearest are {', '.join(near)}{note}"
