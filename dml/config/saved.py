"""Configurations that a run left behind, read again: words of whoever wrote the file, which may be anyone.

Hydra calls whatever a `_target_` names, and OmegaConf fills `${oc.env:NAME}` with the environment.  On the
command line and in configs/ that is the user's own word, or ours.  From a file of a run only what our own
configs name is called, and nothing is filled in.
"""

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from dml.config import compose
from dml.errors import RunError

BUILT = ("data", "backbone", "head")  # groups of which something is built again
ENCODER = ("backbone", "head")
EVALUATED = (*BUILT, "evaluation", "loader", "seed")
LARGEST = 1 << 18  # bytes of a config.yaml; ours have some thousand
MOST_BRACKETS = (
    400  # ours write lists line by line; PyYAML takes a time quadratic in brackets left open
)
MARK = re.compile(r"_[a-z]+_")  # _target_, _args_, _partial_ ...: keys that steer Hydra


def of_record(
    finished: Mapping[str, Any], run: Path, groups: Sequence[str], typed: Collection[str] = ()
) -> DictConfig:
    """Those groups of a record's configuration that are used again, and nothing else.

    typed: words of the command line; a class that they name (`data._target_=my.images`) may be called.

    Raises RunError with all that could make other code run than ours.
    """
    config = finished["config"]
    found = [f"config.{group} is missing" for group in groups if group not in config]
    for group in set(BUILT) & set(groups) & set(config):
        if not isinstance(config[group], dict):
            found.append(f"config.{group} holds no options")
        elif f"{group}._target_={config[group].get('_target_')}" not in typed:
            found += target_problems(config[group], group)
    for where, value in entries({group: config.get(group) for group in groups}):
        *_, key = where.split(".")
        if MARK.fullmatch(key) and where not in {f"{group}._target_" for group in BUILT}:
            found.append(f"config.{where} would say how things are called")
        if isinstance(value, str) and "${" in value:
            found.append(f"config.{where}={value} would be filled in, from elsewhere")
    if found:
        raise RunError(
            f"{run}/record.json is not as dml-train writes it; nothing of it was run:\n  "
            + "\n  ".join(sorted(found))
        )
    return DictConfig({group: copy.deepcopy(config[group]) for group in groups})


def target_problems(node: Mapping[str, Any], group: str) -> list[str]:
    """A group whose `_target_` is none of our own configs'."""
    target = node.get("_target_")
    if isinstance(target, str) and target in shipped(group):
        return []
    what = f"config.{group}._target_={target} is none of dml's, and is not called at a file's word"
    mend = f"; if it is yours, repeat the word: data._target_={target}" if group == "data" else ""
    return [what + mend]


@cache
def shipped(group: str) -> frozenset[str]:
    """What the files of configs/<group> name as their `_target_`."""
    files = (compose.config_dir() / group).glob("*.yaml")
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return frozenset(re.findall(r"^_target_: (\S+)$", text, re.MULTILINE))


def word_problem(word: str) -> str | None:
    """Why a word out of a record's command line is not taken up again unseen, or None."""
    key, _, value = word.partition("=")
    if any(MARK.fullmatch(part) for part in key.lstrip("+~").split(".")) or (
        "{" in value and MARK.search(value)
    ):
        return "names code to call"
    if "${" in word:
        return "would be filled in, from the environment or elsewhere"
    return None


def checkpoint_of(finished: Mapping[str, Any], run: Path) -> Path:
    """The checkpoint of a run that its record names.  Raises RunError: none, or outside of the run."""
    name = finished["checkpoint"].get("file")
    if not isinstance(name, str) or not name or "\0" in name:
        raise RunError(f"{run}/record.json is not a record: checkpoint.file is missing.")
    if not (run / name).resolve().is_relative_to(run.resolve()):
        raise RunError(
            f"{run}/record.json names the checkpoint {name}, which lies outside of {run}.\n"
            "A run's checkpoint is in its own directory: copy the whole run again."
        )
    return run / name


def protocol_of(finished: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """What a record says of its embeddings: `normalized`, `similarity`, and `preprocess` before the network.

    Raises RunError: an entry is missing or of another kind.
    """
    told = finished["protocol"]
    kinds = {"normalized": bool, "similarity": str, "preprocess": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(told.get(name), kind)]
    for name, kind in {"image_size": int, "resize": int, "interpolation": str}.items():
        if not wrong and not isinstance(told["preprocess"].get(name), kind):
            wrong.append(f"preprocess.{name}")
    if not wrong and told["similarity"] not in ("cosine", "dot", "euclidean"):
        wrong.append("similarity")
    if wrong:
        names = ", ".join(f"protocol.{name}" for name in wrong)
        raise RunError(f"{run}/record.json is not a record: {names} missing or of another kind.")
    return told


def read(path: Path) -> dict[str, Any]:
    """config.yaml as plain dictionaries, `${...}` as it stands.

    Raises RunError: no YAML of a dictionary, or one that says things by reference (`&`, `*`), which ours
    never do and which can make a short file endless.
    """
    why = None
    try:
        if path.stat().st_size > LARGEST:
            why = f"it has more than {LARGEST} bytes"
        else:
            text = path.read_text(encoding="utf-8")
            if text.count("[") + text.count("{") > MOST_BRACKETS:
                raise ValueError("it nests as ours never do")
            events = yaml.parse(text, Loader=yaml.SafeLoader)
            if any(isinstance(event, yaml.AliasEvent) for event in events):
                why = "it says things by reference"
            else:
                content = yaml.safe_load(text)
                if isinstance(content, dict):
                    return content
                why = "it is no dictionary"
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
    raise RunError(f"{path} is not as dml-train writes it ({why}).")


def entries(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value of everything within, nodes and leaves."""
    pairs: Any = ()
    if isinstance(node, Mapping):
        pairs = node.items()
    elif isinstance(node, list):
        pairs = enumerate(node)
    for key, value in pairs:
        below = f"{where}.{key}".lstrip(".")
        yield below, value
        yield from entries(value, below)
