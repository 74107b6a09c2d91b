"""Evidence: the records in experiments/records, each proven before it is taken in and at every check.

Torch-free.  A record lies in experiments/records/<experiment>/ as

  seed<k>.json           a run
  seed<k>_fold<j>.json   a run of one fold
  seed<k>_folds.json     `dml-eval runs=[...]` over the folds of a seed: their embeddings side by side
  untrained.json         `dml-eval experiment=...`: an encoder as it comes

It is what the run wrote, but for places on the machine it ran on: `<data.root>` stands for the value of
data.root, and so on.  `source_sha256` is the checksum of what the run wrote.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dml import experiments, record
from dml.config import pins
from dml.config.pins import shown
from dml.errors import ConfigurationError, RunError

FOLDER = Path("experiments") / "records"
SOURCE = "source_sha256"
IN_HISTORY = "commit_in_history"
# Options whose values are places of one machine.
PLACES = (
    "data.root",
    "data.cache_dir",
    "backbone.weights",
    "run_dir",
    "ckpt_path",
    "run",
    "runs",
    "out",
    "embeddings",
    "per_query",
    "per_class",
)
MACHINE_PATH = re.compile(r"(?:^|[\s='\"\[(,:])(~?/[\w.~-][^\s'\",\])]*)")
# What a record of dml-eval must hold to be evidence; dots step into dictionaries.
EVALUATION: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "command": str,
    "code.commit": (str, type(None)),
    "code.dirty": (bool, type(None)),
    "versions": dict,
    "data.fingerprint": str,
    "data.unreadable": dict,
    "split": str,
    "options": dict,
    "metrics": dict,
}
OF_FOLDS: dict[str, type | tuple[type, ...]] = {"runs": dict, "records": dict}
OF_ENCODER: dict[str, type | tuple[type, ...]] = {
    "experiment": (str, type(None)),
    "unpin": bool,
    "config": dict,
    "weights": (dict, type(None)),
}


@dataclass(frozen=True)
class Evidence:
    """A record as it lies in experiments/records.  name: of its file, without .json."""

    experiment: str
    name: str
    record: dict[str, Any]

    @property
    def kind(self) -> str:
        """run, folds or untrained."""
        return kind_of(self.record)

    @property
    def seed(self) -> int | None:
        """The run's seed; None where nothing is drawn."""
        return self.record.get("seed")

    @property
    def fold(self) -> int | None:
        """Which fold was left out; None: there are none, or it is all of them together."""
        return self.record["config"]["data"].get("fold") if self.kind == "run" else None

    @property
    def metrics(self) -> dict[str, float]:
        """Of the test classes, as fractions."""
        found = self.record["metrics"]
        return found["test"] if self.kind == "run" else found

    @property
    def file(self) -> str:
        """Where it lies below experiments/records."""
        return f"{self.experiment}/{self.name}.json"


def kind_of(content: Mapping[str, Any]) -> str:
    """run, folds (`dml-eval runs=...`) or untrained (`dml-eval experiment=...`)."""
    if "runs" in content:
        return "folds"
    return "run" if "checkpoint" in content and "seed" in content else "untrained"


def owner_of(content: Mapping[str, Any]) -> str | None:
    """The experiment that a record says it is of."""
    owner = content["config"] if kind_of(content) == "run" else content
    return owner.get("experiment")


def name_of(content: Mapping[str, Any]) -> str:
    """The file that a record belongs in, without .json."""
    kind = kind_of(content)
    if kind == "untrained":
        return "untrained"
    if kind == "folds":
        return f"seed{content.get('seed')}_folds"
    fold = content["config"]["data"].get("fold")
    return f"seed{content['seed']}" + ("" if fold is None else f"_fold{fold}")


def load(root: Path) -> tuple[list[Evidence], list[str]]:
    """All evidence below root/experiments/records, and what is wrong with files that are none."""
    folder, found, wrong = root / FOLDER, [], []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        where = path.relative_to(folder).as_posix()
        if path.suffix != ".json" or path.parent.parent != folder:
            wrong.append(
                f"{where} is no record: experiments/records holds <experiment>/<name>.json."
            )
            continue
        try:
            content = record.read_json(path)
        except RunError as error:
            wrong.append(str(error))
            continue
        if reasons := shape_problems(content):
            wrong += [f"{where}: {reason}" for reason in reasons]
            continue
        found.append(Evidence(path.parent.name, path.stem, content))
    return found, wrong


def check(evidence: Sequence[Evidence]) -> list[str]:
    """What is wrong with evidence that is there, record by record; [] if nothing is."""
    wrong, sources = [], {}
    for one in evidence:
        others = [other for other in evidence if other is not one]
        reasons = problems(one) + conflicts(one, others)
        if SOURCE not in one.record or IN_HISTORY not in one.record:
            reasons.append("was put here by hand. Add the run by dml-report add=RUN.")
        if owner_of(one.record) != one.experiment:
            reasons.append(
                f"is of experiment={owner_of(one.record)}. Move it, or add the run again."
            )
        reasons += place_problems(one.record)
        if name_of(one.record) != one.name:
            reasons.append(
                f"is the record of {name_of(one.record)}. Rename it, or add the run again."
            )
        twin = sources.setdefault(one.record.get(SOURCE), one)
        if twin is not one:
            reasons.append(f"is the same run as {twin.file}. Remove one of them.")
        wrong += [f"{one.file}: {reason}" for reason in reasons]
    return wrong


def add(
    runs: Sequence[Path], root: Path, *, replace: bool = False
) -> list[tuple[Path, Evidence, bool]]:
    """Take records in, all of them or none.

    runs: directories of finished runs, or files of dml-eval.  replace: a record of the same seed makes room.

    Returns source, evidence, and whether it is new (not there already), one by one.

    Raises RunError with every reason against every one of them.
    """
    there, wrong = load(root)
    added, reasons = [], [f"{FOLDER.as_posix()}/{reason}" for reason in wrong]
    for run in runs:
        try:
            one = evidence_of(read(run), root, there)
            same = next((e for e in there if e.file == one.file), None)
            others = [e for e in there if e is not same]
            against = problems(one) + conflicts(one, others) + place_problems(one.record)
        except RunError as error:
            reasons.append(str(error))
            continue
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Sealed by someone else: what lies deeper than `shape_problems` looks can be anything.
            reasons.append(f"{run}: is not as dml writes it ({type(error).__name__}: {error}).")
            continue
        is_new = same is None or same.record.get(SOURCE) != one.record[SOURCE]
        if same is not None and is_new and not (replace and same not in [e for _, e, _ in added]):
            against.append(
                f"{FOLDER.as_posix()}/{one.file} is another run of the same seed. A seed has one record: "
                "add replace=true if this one is to take its place."
            )
        reasons += [f"{run}: {reason}" for reason in against]
        if is_new:
            there = [*others, one]
        added.append((run, one if is_new or same is None else same, is_new))
    if reasons:
        raise RunError("nothing was added.\n" + "\n".join(f"  {reason}" for reason in reasons))
    for _, one, is_new in added:
        if is_new:
            path = root / FOLDER / one.file
            path.parent.mkdir(parents=True, exist_ok=True)
            record.write_json(one.record, path)
    return added


def read(run: Path) -> dict[str, Any]:
    """The sealed content of a run's directory or of a file of dml-eval.  Raises RunError."""
    if not run.is_file():
        return record.read(run)
    content = record.read_json(run)
    if reasons := shape_problems(content):
        raise RunError(f"{run} is no evidence: " + "; ".join(reasons))
    if why := record.seal_problem(content):
        raise RunError(f"{run} {why}.")
    return content


def shape_problems(content: Mapping[str, Any]) -> list[str]:
    """Entries that a record of its kind lacks or that are illegal."""
    if kind_of(content) == "run":
        return record.problems(content) + name_problems(content)
    required = EVALUATION | (OF_FOLDS if kind_of(content) == "folds" else OF_ENCODER)
    found = record.entry_problems(content, required) + record.format_problems(content)
    found += name_problems(content)
    metrics = content.get("metrics")
    return found + (record.metric_problems(metrics, "metrics") if isinstance(metrics, dict) else [])


def name_problems(content: Mapping[str, Any]) -> list[str]:
    """What decides a record's file name, and is no plain name or number: it would be written elsewhere."""
    config = content.get("config")
    data = config.get("data") if isinstance(config, Mapping) else None
    fold = data.get("fold") if isinstance(data, Mapping) else None
    seed = content.get("seed")
    kind = kind_of(content)
    owner = (config if kind == "run" else content) or {}
    owner = owner.get("experiment") if isinstance(owner, Mapping) else None
    found = []
    if kind == "run" and not isinstance(data, Mapping):
        found.append("config.data is missing")
    if owner is not None and not (isinstance(owner, str) and re.fullmatch(r"\w[\w.-]*", owner)):
        found.append(f"experiment {owner!r:.80} is no name of an experiment")
    for name, number in {"config.data.fold": fold, "seed": seed}.items():
        if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
            found.append(f"{name} {number!r:.80} is no number")
    return found


def evidence_of(content: dict[str, Any], root: Path, there: Sequence[Evidence]) -> Evidence:
    """What a run wrote as evidence: places replaced, the original's checksum kept, sealed anew."""
    source = content[record.SEAL]
    kept = without_places(content)
    kept |= {SOURCE: source, IN_HISTORY: in_history(content["code"]["commit"], root)}
    if kind_of(kept) == "folds":
        kept |= of_folds(kept, there)
    return Evidence(owner_of(kept) or "none", name_of(kept), record.sealed(kept))


def of_folds(content: Mapping[str, Any], there: Sequence[Evidence]) -> dict[str, Any]:
    """The entries of `dml-eval runs=...` that name its runs, as evidence names them.

    Raises RunError: a run of it is no evidence yet, or they are not the folds of one seed.
    """
    by_source = {one.record.get(SOURCE): one for one in there}
    parts, missing = {}, []
    for run, source in content["records"].items():
        if source in by_source:
            parts[run] = by_source[source]
        else:
            missing.append(run)
    if missing:
        names = ", ".join(missing)
        raise RunError(f"an evaluation of runs that are no evidence: {names}. Add them first.")
    owners = {(one.experiment, one.seed) for one in parts.values()}
    if len(owners) != 1:
        raise RunError(
            "an evaluation of runs of several experiments or seeds: it is no k-fold result."
        )
    ((experiment, seed),) = owners
    return {
        "experiment": experiment,
        "seed": seed,
        "runs": {parts[run].name: metrics for run, metrics in content["runs"].items()},
        "records": {parts[run].name: source for run, source in content["records"].items()},
    }


def problems(one: Evidence) -> list[str]:
    """What speaks against a record by itself, each with its mend."""
    content, found = one.record, []
    if why := record.seal_problem(content):
        found.append(f"{why}. Add the run itself again.")
    commit, dirty = content["code"]["commit"], content["code"]["dirty"]
    if commit is None:
        found.append(
            "its code has no commit: it ran outside a git checkout. Run it again in a clone."
        )
    elif dirty is not False:
        found.append(
            f"its code had changes that are in no commit (on {commit[:7]}). Commit them, and run it again."
        )
    if content["data"]["unreadable"]:
        found.append(
            f"{len(content['data']['unreadable'])} images could not be read: it is a result on other data. "
            "Mend them, and run it again."
        )
    if one.kind != "run" and content["split"] != "test":
        found.append(f"it is of split={content['split']}, not of the test classes.")
    if one.kind != "folds":
        found += experiment_problems(one)
    if one.kind == "run":
        rule = content["checkpoint"]["rule"]
        if not (rule == "last epoch" or rule.startswith("best val/")):
            found.append(
                f"its checkpoint was chosen by {rule!r}. Only the last epoch or validation classes may "
                "choose: selection.rule=last or best."
            )
    return found


def experiment_problems(one: Evidence) -> list[str]:
    """Whether a record is of its experiment as the file says today."""
    content = one.record
    config = content["config"]
    if one.kind == "untrained":
        config = config | {
            key: content.get(key) for key in ("experiment", "claim", "pins", "unpin")
        }
    if config.get("experiment") is None:
        return ["is of no experiment. Run it again by experiment=NAME (configs/experiment)."]
    if config.get("unpin"):
        return ["was run with unpin=true, which gave its experiment up. Run it again without."]
    found, claim = [], config.get("claim")
    if claim is not None and not str(claim.get("source") or "").strip():
        found.append(
            "claims a published number without its source. Name it in claim.source of "
            f"configs/experiment/{one.experiment}.yaml, and run it again."
        )
    if claim is not None and claim.get("metric") not in one.metrics:
        found.append(f"claims {claim.get('metric')}, which it did not measure.")
    try:
        values = changed_values(config)
    except ConfigurationError as error:
        return found + [problem.what.splitlines()[0] for problem in error.problems]
    for key, (today, then) in values.items():
        found.append(
            f"pinned {key}={shown(then)} is not the experiment's today ({shown(today)}). "
            f"Run experiment={one.experiment} again."
        )
    return found


COMPARED: dict[str, dict[str, tuple[Any, Any]]] = {}  # the seeds of an experiment ask the same


def changed_values(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Pinned option -> (the experiment's value today, the record's), where they differ.

    A changed claim is none of them: it is read from the experiment's file, and the record is held against
    the values that made it.  Raises ConfigurationError: there is no such experiment.
    """
    decisive = {
        key: value
        for key, value in pins.dotted(config).items()
        if key not in (*pins.FREE, *PLACES, "seed")
        or key == "data.num_train_classes"  # other options may refer to it
    }
    key = record.checksum(decisive)
    if key not in COMPARED:
        changed = experiments.changed(config)
        COMPARED[key] = {
            k: v for k, v in changed.items() if k != "pins" and not k.startswith("claim")
        }
    return COMPARED[key]


def conflicts(one: Evidence, others: Sequence[Evidence]) -> list[str]:
    """What speaks against a record beside the others of its experiment."""
    own, found = [other for other in others if other.experiment == one.experiment], []
    if one.kind == "folds":
        return fold_problems(one, own)
    same = [e for e in own if e.kind == one.kind and e.fold == one.fold]
    from_file = [e for e in own if e.kind != "folds" and e.record["weights"] is not None]
    for group, entry, beside in (("data", "fingerprint", same), ("weights", "sha256", from_file)):
        if one.record[group] is None:
            continue
        own_value = one.record[group][entry]
        unlike = next((e for e in beside if e.record[group][entry] != own_value), None)
        if unlike is not None:
            found.append(
                f"foreign {group}: its {group}.{entry} is {own_value[:12]}..., that of {unlike.file} "
                f"{unlike.record[group][entry][:12]}... An experiment's records share their {group}."
            )
    return found


def fold_problems(one: Evidence, own: Sequence[Evidence]) -> list[str]:
    """Whether concatenated folds are all folds of one seed, and evaluated as the runs themselves were."""
    by_name = {other.name: other for other in own}
    found = [
        f"its part {name} is not the record that is here."
        for name, source in one.record["records"].items()
        if name not in by_name or by_name[name].record.get(SOURCE) != source
    ]
    if found:
        return found
    parts = [by_name[name] for name in one.record["records"]]
    data = parts[0].record["config"]["data"]
    if sorted(part.fold or 0 for part in parts) != list(range(data.get("folds") or 1)):
        folds = ", ".join(str(part.fold) for part in parts)
        found.append(f"it is of folds {folds}; the protocol has {data.get('folds')}.")
    average = one.record["options"]["evaluation"]["average"]
    if any(part.record["config"]["evaluation"]["average"] != average for part in parts):
        found.append(f"its evaluation.average={average} is not that of its runs.")
    prints = {part.record["data"]["fingerprint"] for part in parts}
    if one.record["data"]["fingerprint"] not in prints:
        found.append("foreign data: its data.fingerprint is that of none of its runs.")
    return found


def without_places(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with `<option>` in place of options that say where things are on one machine."""
    kept = json.loads(json.dumps(content))
    words = shlex.split(kept["command"])
    kept["command"] = shlex.join(placeless(word) for word in words)
    if "overrides" in kept:
        kept["overrides"] = [placeless(word) for word in kept["overrides"]]
    for node in (kept.get("config", {}), kept.get("options", {}), kept):
        for place in PLACES:
            *path, last = place.split(".")
            inside = node
            for part in path:
                inside = inside.get(part) or {}
            if isinstance(inside.get(last), str):
                inside[last] = f"<{place}>"
    return kept


def placeless(word: str) -> str:
    """`data.root=<data.root>`; a word that names no place as it is."""
    key, equals, _ = word.partition("=")
    option = key.lstrip("+")
    return f"{key}=<{option}>" if equals and option in PLACES else word


def place_problems(content: Mapping[str, Any]) -> list[str]:
    """Paths of one machine that are left in a record."""
    found = []
    for where, text in texts(content):
        if "claim" not in where.split(".") and (match := MACHINE_PATH.search(text)):
            found.append(
                f"{where} holds {match[1]}, a path of the machine it ran on. Give it relative to data.root "
                "or to the run, and run it again."
            )
    return found


def texts(node: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every string of nested dictionaries and lists, keys too, with where it stands."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield where, str(key)
            yield from texts(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, list):
        for value in node:
            yield from texts(value, where)
    elif isinstance(node, str):
        yield where, node


def in_history(commit: str | None, root: Path) -> bool | None:
    """Whether a commit leads to the checkout's own; None where there is no git checkout to ask."""
    if commit is None:
        return None
    if not re.fullmatch(
        r"[0-9a-f]{7,64}", commit
    ):  # a record's word, which git may take for an option
        return False
    words = ["git", "merge-base", "--is-ancestor", commit, "HEAD"]
    try:
        inside = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, check=False
        )
        done = subprocess.run(words, cwd=root, capture_output=True, check=False)
    except OSError:
        return None
    return None if inside.returncode else done.returncode == 0
