"""record.json: what was run, on what, and what came out; enough to make the number again.

Torch-free, so that reports and checks start quickly.
"""

import hashlib
import json
import math
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from dml.errors import RunError
from dml.evaluation.names import is_fraction

FORMAT = 2
FILE = "record.json"
SEAL = "sha256"  # the entry that tells whether a record is as it was written

# Name -> type of every required entry; dots step into dictionaries.
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "command": str,
    "overrides": list,
    "choices": list,
    "config": dict,
    "seed": int,
    "code.commit": (str, type(None)),
    "code.dirty": (bool, type(None)),
    "versions": dict,
    "hardware": dict,
    "started": str,
    "seconds.total": float,
    "seconds.training": float,
    "peak_memory_bytes": int,
    "data.name": str,
    "data.fingerprint": str,
    "data.splits": dict,
    "data.unreadable": dict,
    "protocol": dict,
    "weights": (dict, type(None)),
    "checkpoint.rule": str,
    "checkpoint.epoch": int,
    "checkpoint.step": int,
    "metrics.frozen": dict,
    "metrics.untrained": dict,
    "metrics.val": (dict, type(None)),
    "metrics.test": dict,
}


def problems(record: Mapping[str, Any]) -> list[str]:
    """What keeps a dictionary from being a record: missing entries, wrong types, metrics out of [0, 1]."""
    found = entry_problems(record, REQUIRED)
    metrics = record.get("metrics")
    for split, values in metrics.items() if isinstance(metrics, Mapping) else ():
        if isinstance(values, Mapping):
            found += metric_problems(values, f"metrics.{split}")
    for choice in record["choices"] if isinstance(record.get("choices"), list) else ():
        if not isinstance(choice, Mapping) or not {"group", "option"} <= choice.keys():
            found.append(f"choices holds {choice!r:.40}, no group with its option")
    return found + format_problems(record)


def entry_problems(
    record: Mapping[str, Any], required: Mapping[str, type | tuple[type, ...]]
) -> list[str]:
    """Entries that are missing or of another type."""
    found = []
    for name, kind in required.items():
        value: Any = record
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                found.append(f"{name} is missing")
                break
            value = value[part]
        else:
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                found.append(f"{name} is {type(value).__name__}, not {kind}")
    return found


def metric_problems(values: Mapping[str, Any], where: str) -> list[str]:
    """Metrics that are no finite number, or no fraction where they should be."""
    found = []
    for name, value in values.items():
        if not isinstance(value, float) or not math.isfinite(value):
            found.append(f"{where}.{name}={value} is no finite number")
        elif is_fraction(name) and not 0 <= value <= 1:
            found.append(f"{where}.{name}={value} is no fraction in [0, 1]")
    return found


def format_problems(record: Mapping[str, Any]) -> list[str]:
    """A record of another version of this package."""
    if record.get("format") in (FORMAT, None):
        return []
    return [f"format {record['format']} is not {FORMAT}, which this version reads"]


def write(record: Mapping[str, Any], directory: Path) -> Path:
    """Seal a record and write record.json aside, then rename: there is a whole record or none."""
    found = problems(record)
    if found:
        raise ValueError("not a record: " + "; ".join(found))
    return write_json(sealed(record), directory / FILE)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its checksum as the entry `sha256`, made anew where it has one."""
    return {**content, SEAL: checksum(content)}


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the content without its seal.

    Of its canonical JSON: keys sorted, no spaces, every number as JSON writes it.
    """
    plain = json.loads(json.dumps({k: v for k, v in content.items() if k != SEAL}, allow_nan=False))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal_problem(content: Mapping[str, Any]) -> str | None:
    """Why the content cannot be taken for what was written, or None."""
    if SEAL not in content:
        return f"has no {SEAL}, which tells whether it is as it was written"
    try:
        whole = content[SEAL] == checksum(content)
    except ValueError:  # NaN, or half a character: what is never written
        whole = False
    if not whole:
        return f"was changed after it was written: its {SEAL} is that of other content"
    return None


def write_json(content: Any, path: Path) -> Path:
    """Write JSON aside, then rename."""
    with aside(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")
    return path


@contextmanager
def aside(path: Path, kept: Path | None = None) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its name once it is written: all of it or nothing.

    It is on the disk before it takes the name, so that not even a power cut leaves half of it.
    kept: the name that what was at `path` before gets.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        if kept is not None and path.exists():
            keep(path, kept)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def keep(path: Path, name: Path) -> None:
    """Give a file a second name; it loses the first only on file systems that know no two."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        path.replace(name)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError within this block know which file it is about; one that comes of writing does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def peak_resident() -> int:
    """Largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would begin at the peak of the process that started this one
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if peak is not None:
            return int(peak[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def read(directory: Path) -> dict[str, Any]:
    """The record of a finished run.  Raises RunError: none there, not a record, or one that was changed."""
    path = directory / FILE
    if not path.is_file():
        raise RunError(f"{directory} holds no {FILE}: it is no finished run.")
    record = read_json(path)
    found = problems(record)
    if found:
        raise RunError(f"{path} is not a record: " + "; ".join(found))
    if why := seal_problem(record):
        raise RunError(f"{path} {why}. Copy it from where it is whole, or run it again.")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a dictionary.  Raises RunError if it does not."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is no JSON, or was cut short: {error}. Copy it again.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a record: it is no dictionary")
    return content


def weights_file(name: str | None) -> dict[str, str] | None:
    """Name and SHA-256 of the file that the trunk began with; None: it was given no file."""
    if name is None:
        return None
    path = Path(name).expanduser()
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def code_state() -> dict[str, Any]:
    """Commit of the checkout this package runs from and whether it was changed; null outside git."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A wheel inside some other project's checkout must not pass for that project's commit.
    tracked = git("ls-files", "--error-unmatch", "record.py") is not None
    status = git("status", "--porcelain") if tracked else None
    return {
        "commit": git("rev-parse", "HEAD") if tracked else None,
        "dirty": None if status is None else status != "",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of every package that can change a number."""
    found = {"python": platform.python_version()}
    for package in (
        "dml",
        "torch",
        "torchvision",
        "timm",
        "pytorch-lightning",
        "pytorch-metric-learning",
        "faiss-cpu",
        "hydra-core",
        "numpy",
        "pillow",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def program() -> str:
    """`python train.py` or `dml-train`, as typed."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name


def command() -> str:
    """The command line as typed."""
    return " ".join([program(), *map(shlex.quote, sys.argv[1:])])
