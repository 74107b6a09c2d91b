"""What tests of several folders share."""

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # one core per pytest worker; before torch is imported

import logging
import tarfile
from pathlib import Path

import pytest

from dml import cli

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
