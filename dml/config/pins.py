"""What an experiment pins: values of its file that the command line may not change.

An experiment without its pins would lend its name and its claim to any run; and a value meant for one loss
(`loss.margin` of triplet) would land in another that the command line chooses.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dml.errors import Problem

BASE = "base_"  # configs/experiment/base_*.yaml: what several experiments share, no experiments
# Options within pinned groups that may differ: where things are, and what decides no number.
FREE = (
    "data.root",
    "data.labels",
    "data.cache",
    "data.cache_dir",
    "data.fold",  # the experiment is its folds together
    "data.num_train_classes",  # counted
    "backbone.pretrained",  # the same weights from a file, see weights_problems
    "backbone.weights",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.timeout",
    "trainer.checkpoint_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
)
MEND = "Drop it, or add unpin=true: the run then is not the experiment's and has no claim."
UNKNOWN = "???"


def flat(config: Any) -> dict[str, Any]:
    """Dotted key -> value; interpolations resolved unless one cannot be."""
    try:
        return dotted(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException:  # unresolvable: reported elsewhere
        return dotted(OmegaConf.to_container(config, resolve=False))


def dotted(container: Any) -> dict[str, Any]:
    """Dotted key -> value of nested dictionaries."""
    found: dict[str, Any] = {}
    for key, value in container.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": kept for inner, kept in dotted(value).items()}
        else:
            found[str(key)] = value
    return found


def pinned(values: Mapping[str, Any], pins: Sequence[str]) -> dict[str, Any]:
    """Those of dotted options that `pins` (groups and options) name and that are not free to differ."""
    below = tuple(f"{pin}." for pin in pins)
    return {
        key: value
        for key, value in values.items()
        if (key in pins or key.startswith(below)) and key not in FREE
    }


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], pins: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """Pinned option -> (the experiment's value, the value now).

    What the experiment leaves to the user (`???`) is none of them, nor an option that only one side knows
    and leaves at nothing.
    """
    old, new = pinned(before, pins), pinned(now, pins)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and old.get(key) != UNKNOWN
    }


def choice_problem(
    name: str, group: str, option: str, alone: DictConfig, folder: Path, unpin: bool
) -> Problem | None:
    """What is wrong with choosing a file of a group beside an experiment, or None.

    alone: the experiment composed without a command line, with Hydra's own node.  folder: configs/.
    """
    word, own = f"{group}={option}", alone.hydra.runtime.choices.get(group)
    if option == own:
        return None
    if group in alone.pins and not unpin:
        return Problem(word, f"experiment={name} pins {group}={own}.\n{MEND}")
    leaking = [key for key in own_values(name, folder) if key.startswith(f"{group}.")]
    if not leaking:
        return None
    return Problem(
        word,
        f"experiment={name} sets {', '.join(leaking)} for {group}={own}, which would land in {word}.\n"
        "Start without the experiment, or keep its choice.",
    )


def value_problems(name: str, config: DictConfig, alone: DictConfig) -> list[Problem]:
    """Values that differ from the experiment's, but for what may."""
    before, now = (
        dotted(cast(dict, OmegaConf.to_container(c, resolve=False))) for c in (alone, config)
    )
    pins, found = list(alone.pins), []
    for key, (old, new) in differences(before, now, pins).items():
        pin = max((p for p in pins if f"{key}.".startswith(f"{p}.")), key=len)
        what = f"experiment={name} pins {pin}, with {key}={shown(old)}.\n{MEND}"
        found.append(Problem(f"{key}={shown(new)}", what))
    if "backbone" in pins and alone.backbone.pretrained:
        found += weights_problems(name, config)
    return found


def weights_problems(name: str, config: DictConfig) -> list[Problem]:
    """A pretrained trunk whose weights the command line takes away without giving others."""
    if config.backbone.pretrained or config.backbone.weights:
        return []
    what = f"experiment={name} starts from pretrained weights, not from random ones.\n"
    what += "Give a file of the same weights: backbone.weights=FILE, or add unpin=true: the run then is "
    what += "not the experiment's and has no claim."
    return [Problem("backbone.pretrained=false", what)]


def shown(value: Any) -> str:
    """A value as the command line writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


@cache
def chain(name: str, folder: Path) -> list[DictConfig]:
    """The experiment's file and those of its own group that it builds on. Read once in a process."""
    file = cast(DictConfig, OmegaConf.load(folder / "experiment" / f"{name}.yaml"))
    bases = [entry for entry in file.get("defaults", []) if isinstance(entry, str)]
    return [file, *(one for base in bases if base != "_self_" for one in chain(base, folder))]


def chosen_groups(name: str, folder: Path) -> set[str]:
    """Groups that an experiment chooses a file of."""
    entries = [entry for file in chain(name, folder) for entry in file.get("defaults", [])]
    words = [str(key) for entry in entries if OmegaConf.is_dict(entry) for key in entry]
    return {w.removeprefix("override").strip().strip("/") for w in words if "override" in w}


def own_values(name: str, folder: Path) -> list[str]:
    """Dotted options that an experiment's file and its bases give a value."""
    found: dict[str, Any] = {}
    for file in chain(name, folder):
        values = OmegaConf.to_container(file, resolve=False)
        assert isinstance(values, dict)
        found |= dotted({k: v for k, v in values.items() if k not in ("defaults", "claim", "pins")})
    return sorted(found)
