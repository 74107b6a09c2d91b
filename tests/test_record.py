"""A record is whole and legal, or it is not written; half-written files do not exist."""

import json

import pytest

from dml import record
from dml.errors import RunError


@pytest.fixture
def good():
    metrics = {"recall@1": 0.5}
    return {
        "format": 2,
        "command": "dml-train",
        "overrides": [],
        "choices": [],
        "config": {},
        "seed": 0,
        "code": {"commit": None, "dirty": None},
        "versions": {},
        "hardware": {},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": {"total": 1.0, "training": 1.0},
        "peak_memory_bytes": 1,
        "data": {"name": "glyphs", "fingerprint": "0", "splits": {}, "unreadable": {}},
        "protocol": {},
        "weights": None,
        "checkpoint": {
            "rule": "last epoch",
            "epoch": 1,
            "step": 1,
            "file": "checkpoints/last.ckpt",
        },
        "metrics": {"frozen": metrics, "untrained": metrics, "val": None, "test": metrics},
    }


def test_what_is_written_is_read(good, tmp_path):
    record.write(good, tmp_path)
    assert record.read(tmp_path) == good | {"sha256": record.checksum(good)}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("name", sorted(record.REQUIRED))
def test_every_entry_is_required(good, tmp_path, name):
    *path, last = name.split(".")
    node = good
    for part in path:
        node = node[part]
    del node[last]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        record.write(good, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [1.01, -0.1, float("nan"), "0.5", 1])
def test_metrics_are_fractions(good, value):
    good["metrics"]["test"]["recall@1"] = value
    assert record.problems(good)


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(good, tmp_path):
    record.write(good, tmp_path)
    good["config"]["value"] = object()
    with pytest.raises(TypeError):
        record.write(good, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    record.read(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"format": 1})])
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(RunError, match="record"):
        record.read(tmp_path)


def test_a_directory_without_a_record_is_no_finished_run(tmp_path):
    with pytest.raises(RunError, match="no finished run"):
        record.read(tmp_path)


def test_another_format_is_refused(good):
    good["format"] = 1
    assert any("format 1" in problem for problem in record.problems(good))


def test_a_record_that_was_edited_is_refused(good, tmp_path):
    """A better number typed into the file must not pass for a result."""
    path = record.write(good, tmp_path)
    path.write_text(path.read_text().replace('"recall@1": 0.5', '"recall@1": 0.6'))
    with pytest.raises(RunError, match="was changed after it was written: its sha256 is that of"):
        record.read(tmp_path)


def test_a_record_without_its_checksum_is_refused(good, tmp_path):
    record.write_json(good, tmp_path / "record.json")
    with pytest.raises(RunError, match="has no sha256"):
        record.read(tmp_path)


def test_the_checksum_follows_the_content_and_not_its_layout(good):
    again = json.loads(json.dumps(good, indent=7))
    assert record.checksum(again) == record.checksum(dict(reversed(good.items())))
    assert record.checksum(record.sealed(good)) == record.checksum(good)
    again["seconds"]["total"] = 1.0000000000000002
    assert record.checksum(again) != record.checksum(good)


def test_a_weights_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "trunk.safetensors"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4
    assert record.weights_file(str(path)) == {"file": "trunk.safetensors", "sha256": digest}
    assert record.weights_file(None) is None
