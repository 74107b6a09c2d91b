"""What the records say: one row for each number that is aimed at or measured.  Torch-free.

Everything is in percent here; records hold fractions.  A verdict compares the mean over seeds with the
published number:

  not run      no record
  reproduced   it differs by no more than the claim's tolerance, in percentage points
  above        it is higher by more than that
  below        it is lower by more than that

With fewer seeds than the claim asks for, the verdict says so.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dml.errors import RunError
from dml.evaluation.statistics import Spread, spread, welch
from dml.report.claims import Listed
from dml.report.records import IN_HISTORY, Evidence

OWN_METRICS = ("recall@1", "map@r")  # of experiments that claim nothing
PEERS = Path("experiments") / "peer"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Family:
    """Experiments that belong together: those whose name begins with `prefix`."""

    prefix: str
    title: str
    about: str


FAMILIES = (
    Family(
        "birds100_",
        "birds100",
        "Photographs of 100 bird species, 50 of them for training; one fine-tuning recipe for every loss. "
        "No published number: this is the project's own reference. *Frozen* are the trunk's pooled features, "
        "*untrained* the encoder as initialised, *trained* the result. The peer is the same recipe as a "
        "plain loop around pytorch-metric-learning (`benchmarks/peer_birds.py`), with the same seeds; the "
        "difference is ours less the peer's, its interval Welch's.",
    ),
    Family(
        "zero_",
        "Without training",
        "Pretrained encoders as they come: the cheapest check of loader, split, transform and metric.",
    ),
    Family(
        "revisiting_",
        "Revisiting Deep Metric Learning",
        "Roth et al., ICML 2020, arXiv:2002.08473: ResNet-50, 128 dimensions, batches of 112. The "
        "published numbers are maxima over epochs on the test classes; ours are not.",
    ),
    Family(
        "reality_check_",
        "A Metric Learning Reality Check",
        "Musgrave et al., ECCV 2020, arXiv:2003.08505: four folds; *separated* is the mean of the four "
        "models, *concatenated* their embeddings side by side.",
    ),
    Family("glyphs_", "glyphs", "The embedded characters: no download, a minute a run."),
    Family("", "Recipes of the papers", "Each loss as its authors, or their code, trained it."),
)


@dataclass(frozen=True)
class Row:
    """One number: what is claimed for it, and what the records give.  Percent.

    models: single, separated (mean over folds) or concatenated (folds side by side).  ours: over seeds.
    main: whether it is the experiment's own number rather than a further one of the same runs.
    frozen, untrained, peer, against_peer: of experiments without a claim.
    """

    experiment: str
    metric: str
    models: str
    command: str
    main: bool
    ours: Spread | None = None
    published: float | None = None
    source: str = ""
    tolerance: float | None = None
    selected_on: str = ""
    seeds: int | None = None
    minutes: float | None = None
    hardware: str = ""
    commits: tuple[str, ...] = ()
    frozen: float | None = None
    untrained: Spread | None = None
    peer: Spread | None = None
    against_peer: "Gain | None" = None

    @property
    def difference(self) -> float | None:
        """Ours less the published number, percentage points."""
        if self.ours is None or self.published is None:
            return None
        return self.ours.mean - self.published

    @property
    def verdict(self) -> str:
        """See the module; without a claim: whether it was run."""
        if self.ours is None:
            return NOT_RUN
        if self.difference is None:
            return "measured"
        if self.tolerance is None:
            return ""  # a further number of a claim, which sets no tolerance for it
        word = "reproduced"
        if abs(self.difference) > self.tolerance:
            word = "above" if self.difference > 0 else "below"
        wanted = self.seeds or 1
        return word if self.ours.n >= wanted else f"{word} ({self.ours.n} of {wanted} seeds)"


@dataclass(frozen=True)
class Gain:
    """Ours less the peer's mean, percentage points; no interval where one side has a single run."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Section:
    """A family and its rows; notes: what a reader must know of them, text -> experiments."""

    family: Family
    rows: list[Row]
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def claims(self) -> list[Row]:
        """Rows that are compared with a published number; further ones only once there is a record."""
        return [r for r in self.rows if r.published is not None and (r.main or r.ours is not None)]

    @property
    def own(self) -> list[Row]:
        """Rows of experiments that claim nothing."""
        return [row for row in self.rows if row.published is None]


def family_of(name: str) -> Family:
    """The family of an experiment."""
    return next(family for family in FAMILIES if name.startswith(family.prefix))


def sections(
    listed: Sequence[Listed],
    evidence: Sequence[Evidence],
    peers: Mapping[str, "Peer"] | None = None,
) -> list[Section]:
    """All rows, family by family; families without an experiment are left out.

    peers: experiment -> what another library measured by its recipe.
    """
    found = {family.prefix: Section(family, []) for family in FAMILIES}
    for one in listed:
        own = [e for e in evidence if e.experiment == one.name]
        section = found[family_of(one.name).prefix]
        peer = (peers or {}).get(one.name)
        section.rows.extend(claim_rows(one, own) if one.claim else own_rows(one, own, peer))
        for note in notes(one, own, peer):
            section.notes.setdefault(note, []).append(one.name)
    return [section for section in found.values() if section.rows]


def claim_rows(one: Listed, own: Sequence[Evidence]) -> list[Row]:
    """The claimed number, then the further published ones of the same runs."""
    claim = one.claim
    assert claim is not None
    models = claim["models"]
    wanted = [(claim["metric"], models, claim["published"], True)]
    wanted += [(metric, models, value, False) for metric, value in claim["others"].items()]
    if models != "concatenated":
        wanted += [(m, "concatenated", value, False) for m, value in claim["concatenated"].items()]
    return [
        Row(
            one.name,
            metric,
            kind,
            one.command,
            main,
            ours=spread_of(per_seed(own, kind, metric)),
            published=published,
            source=claim["source"],
            tolerance=claim["tolerance"] if main else None,
            selected_on=claim["selected_on"],
            seeds=claim["seeds"],
            **circumstances(own, kind),
        )
        for metric, kind, published, main in wanted
    ]


def own_rows(one: Listed, own: Sequence[Evidence], peer: "Peer | None") -> list[Row]:
    """What an experiment without a claim measured."""
    kinds = ["single"]
    if any(e.fold is not None for e in own):
        kinds = ["separated", "concatenated"]
    rows = []
    for kind in kinds:
        for number, metric in enumerate(OWN_METRICS):
            values = per_seed(own, kind, metric)
            if kind == "concatenated" and not values:
                continue
            before = {} if kind == "concatenated" else before_training(own, metric)
            theirs = {} if peer is None or kind != "single" else compared(values, peer.of(metric))
            main = number == 0 and kind == kinds[0]
            rows.append(
                Row(
                    *(one.name, metric, kind, one.command, main),
                    ours=spread_of(values),
                    **circumstances(own, kind),
                    **before,
                    **theirs,
                )
            )
    return rows


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The peer's mean, and ours less theirs where both have one."""
    if not theirs:
        return {}
    found: dict[str, Any] = {"peer": spread(theirs)}
    if len(ours) > 1 and len(theirs) > 1:
        against = welch(ours, theirs)
        found["against_peer"] = Gain(against.mean, against.low, against.high)
    elif ours:
        found["against_peer"] = Gain(sum(ours) / len(ours) - sum(theirs) / len(theirs))
    return found


def of_models(own: Iterable[Evidence], models: str) -> list[Evidence]:
    """The records behind a row."""
    if models == "concatenated":
        return [e for e in own if e.kind == "folds"]
    return [e for e in own if e.kind != "folds" and (e.fold is None) == (models == "single")]


def per_seed(own: Sequence[Evidence], models: str, metric: str) -> list[float]:
    """Percent, one a seed; separated: the mean over folds, of seeds whose folds are all there."""
    chosen = of_models(own, models)
    if models != "separated":
        return [100 * e.metrics[metric] for e in chosen if metric in e.metrics]
    return [
        sum(100 * e.metrics[metric] for e in folds) / len(folds)
        for folds in complete(chosen).values()
        if all(metric in e.metrics for e in folds)
    ]


def complete(runs: Sequence[Evidence]) -> dict[int, list[Evidence]]:
    """Seed -> its folds, of seeds that have all."""
    seeds = sorted({e.seed for e in runs if e.seed is not None})
    found = {seed: [e for e in runs if e.seed == seed] for seed in seeds}
    return {
        seed: folds
        for seed, folds in found.items()
        if sorted(e.fold or 0 for e in folds)
        == list(range(folds[0].record["config"]["data"]["folds"]))
    }


def spread_of(values: Sequence[float]) -> Spread | None:
    """Mean and interval, None of nothing."""
    return spread(values) if values else None


def before_training(own: Sequence[Evidence], metric: str) -> dict[str, Any]:
    """The frozen trunk and the untrained encoder on the same classes."""
    runs = [e for e in own if e.kind == "run"]
    frozen = [100 * e.record["metrics"]["frozen"][metric] for e in runs]
    untrained = [100 * e.record["metrics"]["untrained"][metric] for e in runs]
    if not runs:
        return {}
    return {"frozen": sum(frozen) / len(frozen), "untrained": spread(untrained)}


def circumstances(own: Sequence[Evidence], models: str) -> dict[str, Any]:
    """Minutes of a run, on what, and of which commits."""
    chosen = of_models(own, models)
    seconds = [e.record["seconds"]["total"] for e in chosen if "seconds" in e.record]
    devices = {e.record["hardware"]["device"] for e in chosen if "hardware" in e.record}
    return {
        "minutes": sum(seconds) / len(seconds) / 60 if seconds else None,
        "hardware": ", ".join(sorted(devices)),
        "commits": tuple(sorted({e.record["code"]["commit"] for e in chosen})),
    }


def notes(one: Listed, own: Sequence[Evidence], peer: "Peer | None") -> list[str]:
    """What a reader must know of an experiment beside its numbers."""
    found = [] if one.claim is None else list(one.claim["known_differences"])
    runs = [e for e in own if e.kind != "folds"]
    files = {(w["file"], w["sha256"]) for w in (e.record["weights"] for e in runs) if w}
    found += [f"weights from the file `{f}`, SHA-256 `{digest}`" for f, digest in sorted(files)]
    unknown = {e.record["code"]["commit"] for e in own if e.record[IN_HISTORY] is not True}
    for commit in sorted(unknown):
        found.append(f"commit `{commit[:7]}` was not in this history when the record was added")
    folds = of_models(own, "separated")
    whole = sum(map(len, complete(folds).values()))
    if len(folds) > whole:
        found.append("not all folds of every seed are here; seeds without all are left out")
    if peer is not None and peer.dirty:
        found.append(
            f"{peer.dirty} of the peer's runs had changes in the tree that are in no commit"
        )
    return found


@dataclass(frozen=True)
class Peer:
    """What another library measured by the recipe of an experiment; rows of experiments/peer/*.csv."""

    rows: list[dict[str, str]]

    def of(self, metric: str) -> list[float]:
        """Percent, one a seed."""
        return [100 * float(row[metric]) for row in self.rows if row.get(metric)]

    @property
    def dirty(self) -> int:
        """How many rows were made by code that is in no commit."""
        return sum(row.get("dirty") != "False" for row in self.rows)


def peers(root: Path) -> dict[str, Peer]:
    """Experiment -> its peer's rows: experiments/peer/<family>.csv with the columns loss, seed and metrics.

    Raises RunError: a table that cannot be read, or two rows of one loss and seed.
    """
    found: dict[str, Peer] = {}
    for path in sorted((root / PEERS).glob("*.csv")):
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        seen = set()
        for row in rows:
            key = (row.get("loss"), row.get("seed"))
            if None in key or any(not fraction(row.get(metric)) for metric in OWN_METRICS):
                raise RunError(
                    f"{path}: a row lacks loss, seed or {' or '.join(OWN_METRICS)}: {row}"
                )
            if key in seen:
                raise RunError(f"{path} has two rows of loss={key[0]}, seed={key[1]}. Remove one.")
            seen.add(key)
            found.setdefault(f"{path.stem}_{key[0]}", Peer([])).rows.append(row)
    return found


def fraction(text: str | None) -> bool:
    """Whether a cell holds a number in [0, 1]."""
    try:
        return 0 <= float(text or "nan") <= 1
    except ValueError:
        return False


def counts(found: Sequence[Section]) -> dict[str, int]:
    """Verdict -> how many of the claimed numbers have it, whatever the number of seeds."""
    words = ["reproduced", "above", "below", NOT_RUN]
    of_claims = [
        row.verdict.split(" (")[0] for section in found for row in section.claims if row.main
    ]
    return {word: of_claims.count(word) for word in words}


COLUMNS: dict[str, Callable[[Row], Any]] = {
    "experiment": lambda row: row.experiment,
    "family": lambda row: family_of(row.experiment).title,
    "metric": lambda row: row.metric,
    "models": lambda row: row.models,
    "published": lambda row: row.published,
    "tolerance": lambda row: row.tolerance,
    "published_epoch": lambda row: row.selected_on,
    "n": lambda row: row.ours and row.ours.n,
    "mean": lambda row: row.ours and row.ours.mean,
    "sd": lambda row: row.ours and row.ours.sd,
    "low": lambda row: row.ours and row.ours.low,
    "high": lambda row: row.ours and row.ours.high,
    "difference": lambda row: row.difference,
    "verdict": lambda row: row.verdict,
    "frozen": lambda row: row.frozen,
    "untrained": lambda row: row.untrained and row.untrained.mean,
    "peer_n": lambda row: row.peer and row.peer.n,
    "peer_mean": lambda row: row.peer and row.peer.mean,
    "peer_sd": lambda row: row.peer and row.peer.sd,
    "peer_difference": lambda row: row.against_peer and row.against_peer.mean,
    "peer_difference_low": lambda row: row.against_peer and row.against_peer.low,
    "peer_difference_high": lambda row: row.against_peer and row.against_peer.high,
    "minutes": lambda row: row.minutes,
    "hardware": lambda row: row.hardware,
    "commits": lambda row: " ".join(row.commits),
    "source": lambda row: row.source,
    "command": lambda row: row.command,
}


def as_csv(found: Sequence[Section]) -> str:
    """Every row; numbers in percent to four places."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for section in found:
        for row in section.rows:
            cells = [column(row) for column in COLUMNS.values()]
            writer.writerow([round(c, 4) if isinstance(c, float) else c for c in cells])
    return text.getvalue()
