"""Experiments: what the files of configs/experiment claim and pin today, for records to be held against.

Torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dml.config import compose, pins
from dml.errors import ConfigurationError, Problem


@dataclass(frozen=True)
class Experiment:
    """An experiment as its file in the tree says today.

    claim: the published number it aims at (`dml.config.schema.Claim`: published, tolerance, others and
    concatenated in percent), or None.  pins: groups and options that the file alone decides.  config: the
    whole configuration without a command line; what the data or the user decide is None or `???`.
    """

    name: str
    claim: dict[str, Any] | None
    pins: tuple[str, ...]
    config: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """Dotted option -> value, of every pinned option."""
        return pins.pinned(pins.dotted(self.config), self.pins)


def names() -> list[str]:
    """All experiments, sorted."""
    return compose.options_of("experiment")


def experiment(name: str) -> Experiment:
    """An experiment by name.  Raises ConfigurationError: there is none, or its file does not compose."""
    return from_config(name, composed(name))


def changed(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where a record is not what its experiment's file says today.

    config: the resolved configuration of a record (`record["config"]`).

    Returns option -> (the file's value, the record's): pinned options, "pins", and the claim's entries,
    where they differ.  Empty: the record is the experiment's.  Left out are options that may differ
    (`dml.config.pins.FREE`) and those that the record is too old to know.

    Raises ConfigurationError: the configuration names no experiment, or one that is gone.
    """
    name = config.get("experiment")
    if name is None:
        raise ConfigurationError([Problem("experiment", "the run was of no experiment.")])
    found = composed(name)
    # What the data decide is as they decided it in that run, so that what refers to it can be compared.
    found.data.num_train_classes = config.get("data", {}).get("num_train_classes")
    today = from_config(name, found)
    claims = (
        pins.dotted({"claim": claim or {}, "pins": list(listed)})
        for claim, listed in ((today.claim, today.pins), (config.get("claim"), config["pins"]))
    )
    different = pins.differences(*claims, pins=["claim", "pins"])
    found_now, then = pins.dotted(today.config), pins.dotted(config)
    # An option that came after the record has the default that it had without the option.
    newer = found_now.keys() - then.keys() - set(pins.own_values(name, compose.config_dir()))
    before = {key: value for key, value in found_now.items() if key not in newer}
    return different | pins.differences(before, then, today.pins)


def composed(name: str) -> DictConfig:
    """The configuration of an experiment, not resolved."""
    if name not in names():
        what = f"there is no configs/experiment/{name}.yaml. {compose.nearest(name, names(), '')}"
        raise ConfigurationError([Problem(f"experiment={name}", what)])
    found, problems = compose.compose_all([f"experiment={name}"])
    if problems:
        raise ConfigurationError(problems)
    return found.config


def from_config(name: str, config: DictConfig) -> Experiment:
    """The experiment of a composed configuration, resolved as far as it can be."""
    plain = {str(key): resolved(config[key]) for key in config}
    return Experiment(name, plain["claim"], tuple(plain["pins"]), plain)


def resolved(node: Any) -> Any:
    """A node as plain values; one that refers to what is not yet known stays as it is written."""
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_container(node, resolve=False)
