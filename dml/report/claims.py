"""What the experiment files aim at, read without composing them: 160 files take a second, not half a minute.

Torch-free.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from dml import experiments
from dml.config import compose
from dml.config.schema import Claim

COMMAND = re.compile(r"^#\s+((?:python train\.py|dml-eval) .*\bexperiment=.*?)\s*$", re.M)


@dataclass(frozen=True)
class Listed:
    """An experiment of configs/experiment.

    claim: as `dml.experiments.Experiment.claim`.  command: that of the head of its file.
    """

    name: str
    claim: dict[str, Any] | None
    command: str


@cache
def listed() -> tuple[Listed, ...]:
    """Every experiment, by name; read once."""
    return tuple(Listed(name, claim_of(name), command_of(name)) for name in experiments.names())


def claim_of(name: str) -> dict[str, Any] | None:
    """The claim of an experiment's file over those of the files it builds on, or None."""
    claims = claims_of(name)
    if not claims:
        return None
    merged = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Claim), *claims))
    found = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def claims_of(name: str) -> list[DictConfig]:
    """The claims of the files it builds on, then its own; `claim: null` gives up those before it."""
    file, found = load(name), []
    for base in file.get("defaults", []):
        if isinstance(base, str) and base != "_self_":
            found += claims_of(base)
    if "claim" not in file:
        return found
    return [] if file.claim is None else [*found, file.claim]


@cache
def load(name: str) -> DictConfig:
    """A file of configs/experiment, not composed."""
    return cast(DictConfig, OmegaConf.load(compose.config_dir() / "experiment" / f"{name}.yaml"))


def command_of(name: str) -> str:
    """How to run it, as the head of its file says.  Raises ValueError if it does not."""
    path = compose.config_dir() / "experiment" / f"{name}.yaml"
    match = COMMAND.search(path.read_text())
    if match is None:
        raise ValueError(f"{path.name} has no command in its head comment: # python train.py ...")
    return match[1]
