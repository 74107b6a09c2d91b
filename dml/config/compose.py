"""From a command line to a configuration, with every mistake of the command line at once.

Hydra composes; it stops at the first mistake. So each word is first held against what exists, and what
is wrong becomes a `Problem` with the nearest legal names.
"""

import copy
import difflib
import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dml.config import pins, schema
from dml.config.losses import Sum
from dml.data.index import shortened
from dml.errors import ConfigurationError, Problem

# Groups of dml-eval of which several files may be chosen, in order: post=[pca_whiten,diffusion].
MANY = ("post",)
# Groups of configs/sweep.yaml: how several runs are made, of which a run itself knows nothing.
AROUND = ("launcher", "search")
PART_GROUP = "loss_part"  # the losses within loss=sum
PARTS = tuple(f"loss.{part}" for part in Sum.parts)


@dataclass(frozen=True)
class Choice:
    """Which file of a group was chosen, and by whom: the default, a loss, a data set, an experiment."""

    group: str
    option: str
    chosen_by: str


@dataclass(frozen=True)
class Composed:
    """A configuration and where it came from.

    overrides: the words of the command line.  options: group -> the file chosen for it.
    """

    config: DictConfig
    overrides: list[str]
    options: dict[str, str]
    config_name: str
    group_words: tuple[str, ...]

    @cached_property
    def choices(self) -> list[Choice]:
        """Every group's choice. Worked out when asked for: most wrong command lines need it not."""
        with hydra_loader() as loader:
            return chosen(loader, self.config_name, list(self.group_words))


def config_dir() -> Path:
    """The folder of the YAML files: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs/train.yaml in {package} or beside it: broken installation")


@cache
def register() -> None:
    """Tell Hydra and OmegaConf about our schemas and interpolations, once in a process."""
    schema.register()
    OmegaConf.register_new_resolver("metrics_for", metrics_for, replace=True)
    OmegaConf.register_new_resolver("at_most", at_most, replace=True)


def register_parts(names: Iterable[str]) -> None:
    """Offer files of configs/loss as parts of a sum: option `loss_part/<name>`.

    A part has the values of its file and the types and ranges of its schema, but brings no sampler
    and no miner: two parts would bring two. Reading a file takes a while, so only those named are read.
    """
    store = ConfigStore.instance()
    for name in names:
        values = cast(DictConfig, OmegaConf.load(config_dir() / "loss" / f"{name}.yaml"))
        schema_name = str(values.pop("defaults")[0]).removeprefix("/schema/loss/").split("@")[0]
        node = OmegaConf.merge(store.repo["schema"]["loss"][f"{schema_name}.yaml"].node, values)
        store.store(group=PART_GROUP, name=name, node=node)


def default_parts() -> list[str]:
    """The losses that configs/loss/sum.yaml adds up unless told otherwise."""
    entries = cast(DictConfig, OmegaConf.load(config_dir() / "loss" / "sum.yaml")).defaults
    found = [dict(entry) for entry in entries if OmegaConf.is_dict(entry)]
    return [v for entry in found for k, v in entry.items() if k.startswith(f"/{PART_GROUP}@")]


def metrics_for(recall_k: list[int]) -> list[str]:
    """The metrics that a data set's K values ask for: recall@k each, then MAP@R and R-precision."""
    return [f"recall@{k}" for k in recall_k] + ["map@r", "r_precision"]


@contextmanager
def hydra_loader() -> Iterator[ConfigLoader]:
    """Hydra's loader over our configuration folder."""
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance()
        yield hydra.config_loader()


def at_most(wanted: int, available: int | None) -> int:
    """`wanted`, or all there are where that is less; None: not yet counted."""
    return wanted if available is None else min(wanted, available)


def around(word: str) -> str | None:
    """The group that a word belongs to, if it is one of those around the runs: launcher or search."""
    name = re.split(r"[=.]", word.lstrip("+"), maxsplit=1)[0]
    return name if name in AROUND else None


def parse(words: list[str]) -> tuple[list[Override], list[Problem]]:
    """Words of the command line as Hydra overrides, and those that cannot be read."""
    parser, overrides, problems = OverridesParser.create(), [], []
    for word in words:
        try:
            overrides += parser.parse_overrides([word])
        except HydraException as error:
            reason = [line for line in str(error).splitlines()[1:2] if "hydra.cc" not in line]
            why = "; ".join(reason) or "is a bracket or a quote left open?"
            problems.append(
                Problem(
                    word,
                    f"cannot be read ({why}).\nOptions are written key=value; a value with "
                    "spaces, commas, = or brackets goes into quotes: \"key='value'\".",
                )
            )
    return overrides, problems


def word(key: str, value: object) -> str:
    """`key=value` as Hydra will read it back, whatever characters the value has."""
    return f"{key}={quoted(str(value))}"


def quoted(text: str) -> str:
    """A value in quotes, where Hydra needs them to read it as text."""
    if re.fullmatch(r"[\w./~-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def expand(words: list[str]) -> tuple[list[list[str]], list[str]]:
    """All jobs of a sweep: the product over every `key=a,b`, and the keys that vary."""
    overrides, problems = parse(words)
    if problems:
        raise ConfigurationError(problems)
    varied = [override for override in overrides if override.is_sweep_override()]
    for override in varied:
        if not (override.is_discrete_sweep() or override.is_range_sweep()):
            problems.append(
                Problem(str(override.input_line), "is no list of values. Write key=a,b,c.")
            )
    if problems:
        raise ConfigurationError(problems)
    axes = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in overrides
    ]
    jobs = [list(job) for job in itertools.product(*axes)]
    return jobs, [override.get_key_element() for override in varied]


def compose_all(words: list[str], config_name: str = "train") -> tuple[Composed, list[Problem]]:
    """Compose a command line as far as it is legal.

    Returns the configuration made of every legal word, and a problem for every other one, so that the
    caller can go on checking and report all of them together.
    """
    overrides, problems = parse(words)
    with hydra_loader():
        chosen_groups, values = [], []
        summed = any(o.key_or_group == "loss" and o.value() == "sum" for o in overrides)
        if summed:
            register_parts(default_parts())
        for override in overrides:
            if override.is_sweep_override():
                problems.append(
                    Problem(
                        str(override.input_line),
                        "names several values. Add -m to run each of them.",
                    )
                )
            elif summed and override.key_or_group in PARTS and not override.is_delete():
                word, problem = part_word(override.key_or_group, str(override.value()))
                problems += [problem] if problem else []
                chosen_groups += [] if problem else [word]
            elif is_group(override):
                problem = group_problem(override, config_name)
                problems += [problem] if problem else []
                none = override.value() is None  # experiment=null, which is the default
                chosen_groups += [] if problem or none else [str(override.input_line)]
            else:
                values.append(override)
        experiment, alone, unpin = experiment_of(chosen_groups), None, unpins(values)
        if experiment is not None and len(chosen_groups) > 1:
            alone = composed_by_hydra(config_name, [f"experiment={experiment}"], problems)
            split = {word: word.lstrip("+").partition("=") for word in chosen_groups}
            wrong = {
                word: pins.choice_problem(experiment, group, name, alone, config_dir(), unpin)
                for word, (group, _, name) in split.items()
                if group != "experiment"
            }
            problems += [problem for problem in wrong.values() if problem]
            chosen_groups = [word for word in chosen_groups if not wrong.get(word)]
        config = composed_by_hydra(config_name, chosen_groups, problems)
        options = {str(group): str(name) for group, name in config.hydra.runtime.choices.items()}
        with open_dict(config):
            del config["hydra"]
        if experiment is not None and alone is None:  # the experiment alone was chosen
            alone = copy.deepcopy(config)
        for override in values:
            problem = set_value(config, override)
            problems += [problem] if problem else []
        if "experiment" not in list(config):  # configs/sweep.yaml: no run
            return Composed(
                config, list(words), options, config_name, tuple(chosen_groups)
            ), problems
        config.experiment = experiment
        if experiment is None and unpin:
            problems.append(
                Problem("unpin=true", "of which experiment? Add experiment=..., or drop it.")
            )
        elif alone is not None and unpin:
            config.claim = None
        elif alone is not None:
            problems += pins.value_problems(str(experiment), config, alone)
    return Composed(config, list(words), options, config_name, tuple(chosen_groups)), problems


def composed_by_hydra(
    config_name: str, group_words: list[str], problems: list[Problem]
) -> DictConfig:
    """The choices of groups composed, with Hydra's own node.

    Raises ConfigurationError, with `problems` before its own, where they do not compose.
    """
    try:
        return compose(config_name, overrides=group_words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        where = " ".join(group_words) or config_name
        raise ConfigurationError([*problems, Problem(where, first_lines(error))]) from error


def experiment_of(group_words: list[str]) -> str | None:
    """The experiment among choices of groups."""
    words = [word.lstrip("+").partition("=") for word in group_words]
    names = [name for group, _, name in words if group == "experiment" and name != "null"]
    return names[-1] if names else None


def unpins(values: list[Override]) -> bool:
    """Whether the options free an experiment of its pins."""
    given = [override.value() for override in values if override.key_or_group == "unpin"]
    return bool(given) and given[-1] is True


def is_group(override: Override) -> bool:
    """Whether an override chooses a file of a group (``loss=circle``) rather than a value."""
    return override.key_or_group in groups()


def groups() -> list[str]:
    """The folders of the configuration: each is a group."""
    return sorted(folder.name for folder in config_dir().iterdir() if folder.is_dir())


def options_of(group: str) -> list[str]:
    """The files of a group."""
    found = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
    return [name for name in found if group != "experiment" or not name.startswith(pins.BASE)]


def group_problem(override: Override, config_name: str) -> Problem | None:
    """What is wrong with a group override, or None."""
    group, value, word = override.key_or_group, override.value(), str(override.input_line)
    if override.is_delete():
        return Problem(
            word, f"a group cannot be removed. Choose one: {group}=none where there is one."
        )
    if value is None and group == "experiment":
        return None
    if group in MANY and config_name == "train":
        return Problem(word, f"{group} is an option of dml-eval; training takes no such steps.")
    if (group in AROUND) != (config_name == "sweep"):
        return Problem(word, f"{group} is an option of dml-train -m, or of its search.")
    options = options_of(group)
    several = value if isinstance(value, list) and group in MANY else [value]
    for name in several:
        if not isinstance(name, str) or name not in options:
            return Problem(
                word, f"{group} has no {name!r}. {nearest(str(name), options, group + '=')}"
            )
    return None


def part_word(key: str, name: str) -> tuple[str, Problem | None]:
    """`loss.first=circle` as Hydra's choice of a group, or what is wrong with it."""
    typed = f"{key}={name}"
    options = [option for option in options_of("loss") if option != "sum"]
    if name not in options:
        return typed, Problem(typed, f"is no loss. {nearest(name, options, key + '=')}")
    register_parts([name])
    return f"{'+' if key == PARTS[2] else ''}{PART_GROUP}@{key}={name}", None


def hydra_words(words: list[str]) -> list[str]:
    """A command line for Hydra's own --help and --cfg, with the losses of a sum as Hydra names them.

    Raises ConfigurationError for a part that is no loss.
    """
    if "loss=sum" not in words:
        return words
    register_parts(default_parts())
    split = [word.partition("=") for word in words]
    translated = [
        part_word(key, name) if key in PARTS else (key + equals + name, None)
        for key, equals, name in split
    ]
    if problems := [problem for _, problem in translated if problem]:
        raise ConfigurationError(problems)
    return [word for word, _ in translated]


def set_value(config: DictConfig, override: Override) -> Problem | None:
    """Set one option in the configuration, or say what is wrong with it and leave it."""
    name, typed = override.key_or_group, str(override.input_line)
    if name.split(".")[0] in ("claim", "pins"):
        return Problem(typed, "stands in the experiment's file and nowhere else.")
    if name.startswith("hydra"):
        return Problem(
            typed,
            "Hydra's own options have no effect here. run_dir=DIR says where a run is written.",
        )
    if override.is_delete():
        return Problem(typed, "an option cannot be removed. Give it another value.")
    parent_key, _, leaf = name.rpartition(".")
    parent = OmegaConf.select(config, parent_key) if parent_key else config
    if not isinstance(parent, DictConfig):
        return unknown_key(config, name, typed)
    free = OmegaConf.get_type(parent) is dict and parent_key != ""
    if leaf == "_target_" and (problem := target_problem(parent, parent_key, override, typed)):
        return problem
    known = leaf in list(parent)  # `in parent` alone would deny an option without a value
    if not free and not known:
        return unknown_key(config, name, typed)
    if known and not free and OmegaConf.is_dict(OmegaConf.select(parent, leaf)):
        first = next(iter(parent[leaf]), "key")
        if OmegaConf.get_type(parent, leaf) is not dict:
            return Problem(
                typed, f"{name} holds several options. Set them one by one: {name}.{first}=..."
            )
    try:
        # Free dictionaries (backbone.kwargs) take new keys without the `+` that Hydra asks for.
        OmegaConf.update(config, name, override.value(), merge=True, force_add=free)
        if isinstance(value := override.value(), str | list | dict):
            settled(config, name, value)
    except (OmegaConfBaseException, RecursionError) as error:
        return Problem(typed, f"{first_lines(error)}.")
    return None


def target_problem(node: DictConfig, group: str, override: Override, typed: str) -> Problem | None:
    """Why a class of one's own cannot stand in for a group's, or None."""
    value = override.value()
    if node.get("_target_") is None:
        return Problem(
            typed, f"the chosen {group} builds nothing. Choose one to replace: {group}=..."
        )
    if value is not None and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", str(value)):
        return Problem(typed, "must name a class or function: package.module.Name.")
    return None


def settled(config: DictConfig, name: str, value: object) -> None:
    """Raise where `${...}` or `???` in a typed value gives none: told at the word, not where it is used."""
    text = str(value)
    if "${" not in text and "???" not in text:
        return
    parent, _, leaf = name.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    found = node[leaf]
    if OmegaConf.is_config(found):
        OmegaConf.to_container(found, resolve=True, throw_on_missing=True)


def unknown_key(base: DictConfig, name: str, word: str) -> Problem:
    """The message for a key that does not exist, with the nearest that do."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):  # the deepest part of the path that exists
        above = ".".join(parts[:depth])
        node = OmegaConf.select(base, above) if above else base
        if isinstance(node, DictConfig):
            names = [str(option) for option in node if option != "_target_"]
            if not above:
                names = sorted({*names, *groups()})
            owner = f"{above} has" if above else "there is"
            prefix = f"{above}." if above else ""
            hints = getattr(OmegaConf.get_type(node), "hints", {})
            if parts[depth] in names:
                path = ".".join(parts[: depth + 1])
                return Problem(word, f"{path} is a value and has no options of its own.")
            if parts[depth] in hints:  # another library's name for an option of ours
                return Problem(word, f"{owner} no option {parts[depth]!r}. {hints[parts[depth]]}")
            return Problem(
                word, f"{owner} no option {parts[depth]!r}. {nearest(parts[depth], names, prefix)}"
            )
    raise AssertionError("the configuration itself is a node")


def nearest(name: str, names: list[str], prefix: str) -> str:
    """`Did you mean loss=circle? Options: ...`"""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    guess = f"Did you mean {prefix}{close[0]}?\n" if close else ""
    return f"{guess}Options: {shortened(names, 40)}."


def chosen(loader: ConfigLoader, config_name: str, group_words: list[str]) -> list[Choice]:
    """Each group, the file taken for it, and who asked for that file."""
    typed = {
        word.lstrip("+").removeprefix(f"{PART_GROUP}@").split("=", 1)[0] for word in group_words
    }
    defaults = loader.compute_defaults_list(config_name, group_words, RunMode.RUN)
    experiment = experiment_of(group_words)
    overridden = pins.chosen_groups(experiment, config_dir()) if experiment else set()
    choices = []
    for default in defaults.defaults:
        group, _, option = (default.config_path or "").rpartition("/")
        if (
            not group
            or group.startswith(("hydra", "schema"))
            or default.parent == f"{group}/{option}"
        ):
            continue
        if group == PART_GROUP:
            group = str(default.package)
        elif default.parent and default.parent.split("/")[0] == group.split("/")[0]:
            continue  # a file that extends another of its own group: the choice is the outer one
        if group in typed:
            by = "command line"
        elif group in overridden:
            by = f"experiment={experiment}"
        elif default.parent in (config_name, "<root>"):
            by = "default"
        else:
            by = str(default.parent).replace("/", "=")
        choices.append(Choice(group, option, by))
    return sorted(choices, key=lambda choice: choice.group)


def first_lines(error: BaseException) -> str:
    """What an exception says, without OmegaConf's key listing."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type="))]
    return " ".join(kept[:3])
