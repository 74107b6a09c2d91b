"""What tests of several folders share."""

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # one core per pytest worker; before torch is imported

import copy
import logging
import tarfile
from functools import lru_cache
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from dml import cli
from dml.config import compose
from dml.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # real photographs and weights, where a machine has them


@pytest.fixture(autouse=True)
def _log():
    """Messages reach pytest's caplog, and no test inherits another's log file."""
    cli.set_up_log()
    log = logging.getLogger("dml")
    log.propagate = True
    yield
    for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session", autouse=True)
def _composed_once():
    """Hydra takes a third of a second for what most tests ask for again: the same files, other values.

    Of the repository's own files, which no test changes; a folder of a test's own is composed as ever.
    """
    own, by_hydra, chosen = compose.config_dir(), compose.composed_by_hydra, compose.chosen

    @lru_cache(64)
    def config(name: str, group_words: tuple[str, ...]):
        return by_hydra(name, list(group_words), [])

    @lru_cache(64)
    def choices(name: str, group_words: tuple[str, ...]):
        return chosen(GlobalHydra.instance().config_loader(), name, list(group_words))

    def config_again(name, group_words, problems):
        if compose.config_dir() != own:
            return by_hydra(name, group_words, problems)
        try:
            return copy.deepcopy(config(name, tuple(group_words)))
        except ConfigurationError:
            return by_hydra(name, group_words, problems)  # which adds its own to `problems`

    def choices_again(loader, name, group_words):
        if compose.config_dir() != own:
            return chosen(loader, name, group_words)
        return list(choices(name, tuple(group_words)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "composed_by_hydra", config_again)
        patch.setattr(compose, "chosen", choices_again)
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Where this session keeps the embedded data sets, drawn once."""
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture(scope="session")
def birds(tmp_path_factory) -> Path:
    """The folder of real bird photographs with its labels.csv."""
    archive = SHARED / "data" / "birds100.tar"
    if not archive.is_file():
        pytest.skip(f"no photographs: {archive.name} is not beside the repository")
    folder = tmp_path_factory.mktemp("birds")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "birds100"


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """ImageNet weights of mobilenetv2_035."""
    path = SHARED / "weights" / "mobilenetv2_035_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no weights: {path.name} is not beside the repository")
    return path
