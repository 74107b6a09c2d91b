"""Fixtures of the data tests."""

import importlib
from pathlib import Path

import further_archives
import pytest
from PIL import Image

from dml.data.sets import glyphs
from dml.errors import ConfigurationError


@pytest.fixture(scope="session")
def glyphs_root(cache) -> Path:
    """A directory with the glyphs, drawn once per session."""
    glyphs.load(root=str(cache))
    return cache


@pytest.fixture
def make_image():
    """Write a small image at a path, making its directories."""

    def write(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 128).save(path)
        return path

    return write


@pytest.fixture
def problems_of():
    """Call a loader that must refuse, and give its problems as (where, what)."""

    def call(load, **options) -> list[tuple[str, str]]:
        with pytest.raises(ConfigurationError) as caught:
            load(**options)
        return [(problem.where, problem.what) for problem in caught.value.problems]

    return call


@pytest.fixture
def further(tmp_path, monkeypatch):
    """Make one of the further data sets, of few images, and give its module and its root."""

    def make(name: str, **options):
        module = importlib.import_module(f"dml.data.sets.{name}")
        monkeypatch.setattr(module, "COUNTS", further_archives.SMALL[name])
        root = further_archives.MAKERS[name](tmp_path / "data", **options)
        if name == "flowers102":
            further_archives.expect_labels(monkeypatch, module, root)
        return module, root

    return make
