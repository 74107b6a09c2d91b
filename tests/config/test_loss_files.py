"""The four files of a loss say the same: YAML keys, schema fields, constructor parameters,
defaults.
"""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dml.config import losses
from dml.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
# Not among them: foreign losses (tests/losses/test_pml.py) and the sum of losses (test_sum.py).
FILES = sorted(
    path
    for path in (ROOT / "configs" / "loss").glob("*.yaml")
    if path.stem != "sum" and not path.stem.startswith("pml_")
)
MINER_FILES = sorted((ROOT / "configs" / "miner").glob("*.yaml"))
NOT_CONSTRUCTOR = {"_target_", "lr_scale", "weight_decay"}
losses.register(ConfigStore.instance())


def schema_node(path: Path):
    """The structured config that the file's defaults list names."""
    return ConfigStore.instance().repo["schema"][path.parent.name][path.name].node


def merged(path: Path, **values):
    """The file over its schema, with the values another group would give, checked as a run checks
    it.
    """
    yaml = OmegaConf.load(path)
    del yaml["defaults"]
    outside = {"data": {"num_train_classes": 10}, "head": {"dim": 8}}
    both = OmegaConf.merge(schema_node(path), yaml, values)
    root = OmegaConf.create({**outside, path.parent.name: both})
    return OmegaConf.to_object(root[path.parent.name])


def defaults_of(target) -> dict:
    """Parameters of a constructor or function, and their defaults."""
    parameters = inspect.signature(target).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


@pytest.mark.parametrize(
    "path", FILES + MINER_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_file_fits_its_schema(path):
    """A shipped value outside its own range would fail on the user's first command."""
    assert merged(path)._target_ == OmegaConf.load(path)._target_


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_loss_brings_sampler_and_miner(path):
    """A loss without a sampler of its own would silently train on whatever another loss left
    behind.
    """
    defaults = [
        entry if isinstance(entry, str) else dict(entry) for entry in OmegaConf.load(path).defaults
    ]
    groups = {
        key: value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()
    }
    assert defaults[0] == f"/schema/loss/{path.stem}@_here_"
    assert defaults[-1] == "_self_"
    assert groups["/sampler@_global_.sampler"] in ("pk", "pairs", "random")
    miner = groups["/miner@_global_.miner"]
    assert (ROOT / "configs" / "miner" / f"{miner}.yaml").is_file()
    kind = OmegaConf.get_type(schema_node(ROOT / "configs" / "miner" / f"{miner}.yaml")).kind
    schema = OmegaConf.get_type(schema_node(path))
    assert kind is None or kind in schema.miners
    assert (groups["/sampler@_global_.sampler"] == "random") == (schema.compares == "proxies")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_yaml_schema_and_constructor_agree(path):
    """One place for a value, one for its range, one for its meaning: a key in one only is dead or
    lost.
    """
    yaml = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    schema = OmegaConf.get_type(schema_node(path))
    fields = {field.name for field in dataclasses.fields(schema)}
    constructor = defaults_of(get_object(yaml["_target_"]))
    for hint in schema.hints:
        assert hint not in fields
        constructor.pop(hint, None)
    assert set(yaml) - {"defaults"} == fields
    assert set(constructor) == fields - NOT_CONSTRUCTOR
    for name, default in constructor.items():
        if isinstance(yaml[name], dict) or str(yaml[name]).startswith("${"):
            assert default is inspect.Parameter.empty  # it has no value of its own
        else:
            default = list(default) if isinstance(default, tuple) else default
            assert default == yaml[name], name


@pytest.mark.parametrize("path", MINER_FILES, ids=lambda path: path.stem)
def test_miner_files_agree_with_their_functions(path):
    """The same rule for miners, whose values live in the YAML alone."""
    yaml = OmegaConf.load(path)
    fields = {field.name for field in dataclasses.fields(OmegaConf.get_type(schema_node(path)))}
    assert set(yaml) - {"defaults"} == fields
    assert set(defaults_of(get_object(yaml._target_))) == fields - {"_target_"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_names_its_paper_and_builds(path):
    """Head comment with the arXiv id or venue; and `_target_` must really take these values."""
    head = path.read_text().splitlines()[0]
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|[A-Z]{4,} \d{4}|NeurIPS \d{4}|NIPS \d{4}", head), head
    values = dataclasses.asdict(merged(path))
    loss = instantiate(
        {key: value for key, value in values.items() if key not in {"lr_scale", "weight_decay"}}
    )
    assert list(loss.parameters()) or not issubclass(
        OmegaConf.get_type(schema_node(path)), losses.ParametricLoss
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_of_the_yaml_has_its_source_beside_it(path):
    """A value without a source cannot be argued with."""
    for line in path.read_text().splitlines():
        value = re.match(r"([a-z]\w*): [^\s$]", line)
        if value:
            assert "#" in line, line


@pytest.mark.parametrize(
    ("loss", "key", "value"),
    [
        ("circle", "margin", 1.5),
        ("circle", "margin", 0),
        ("circle", "scale", 0),
        ("triplet", "variant", "hard"),
        ("triplet", "margin", -0.1),
        ("triplet", "average", "mean"),
        ("multi_similarity", "epsilon", -1),
        ("multi_similarity", "base", 2),
        ("proxy_nca", "scale", -9),
        ("proxy_nca", "lr_scale", 0),
        ("proxy_nca", "weight_decay", -1),
        ("proxy_nca", "num_classes", 1),
    ],
)
def test_values_out_of_range_are_refused(loss, key, value):
    """The message names the key, the value and the range or the words allowed."""
    with pytest.raises(ConfigurationError, match=rf"\.{key}={value}.* must "):
        merged(ROOT / "configs" / "loss" / f"{loss}.yaml", **{key: value})


def test_the_message_gives_the_papers_values():
    """A user who typed a wrong margin wants to know a right one."""
    with pytest.raises(
        ConfigurationError, match=r"must lie in \(0, 1\)\. The paper uses 0\.25 \(faces\)"
    ):
        merged(ROOT / "configs" / "loss" / "circle.yaml", margin=1.5)


def test_wrong_types_are_refused():
    """Hydra checks types from the same dataclass."""
    with pytest.raises(OmegaConfBaseException):
        merged(ROOT / "configs" / "loss" / "circle.yaml", scale="eighty")


def test_the_schemas_import_no_torch():
    """A typo must fail within a second; importing torch alone takes longer."""
    code = (
        "import sys, dml.config.losses; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
