"""Whatever stands in a file or on a command line: it is read, or refused by an error that names it.

Hypothesis damages good files, and writes bad ones.  Each is read as the commands read it.  What must hold:
nothing is raised but the documented errors (a user never sees "not foreseen"), it ends within seconds and
within a bound on memory, and no file appears but in the output directory.

A few examples of each run by default, the same ones every time.  The long hunt:

    DML_FUZZ_MINUTES=10 pytest -n 0 -m slow tests/test_fuzz.py
"""

import contextlib
import copy
import csv
import hashlib
import importlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_runs
import numpy as np
import pytest
from bundles import tiny_bundle
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

import dml
from dml import (
    build,
    bundle_format,
    cli,
    data_command,
    embedding_files,
    eval_command,
    measure,
    record,
)
from dml.config import check, compose, saved
from dml.data.decode import UnreadableImage, open_rgb
from dml.data.sets import csv_file
from dml.errors import ConfigurationError, RunError
from dml.export import command as export_command
from dml.index import command as index_command
from dml.index import files as index_files
from dml.index import open_index, search_command
from dml.report import command as report_command
from dml.report import records

sys.path.append(str(Path(__file__).parent / "data"))
import archives
import further_archives

DOCUMENTED = (ConfigurationError, RunError, UnreadableImage)
SECONDS = 120  # that one example may take, on a machine that does other things as well
MEMORY = 4 << 30  # bytes of addresses that an example may ask for beyond what is in use
EXAMPLES = 6  # of each target by default
MINUTES = float(os.environ.get("DML_FUZZ_MINUTES", "0"))
SECRET = "hunter2-of-the-environment"
OUTSIDE = Path(tempfile.gettempdir()) / "dml_fuzz_outside"  # where paths that lead out lead


# ---------------------------------------------------------------- what must hold


class Hung(BaseException):
    """An example took longer than it may."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within SECONDS and MEMORY."""

    def ring(*_: Any) -> None:
        raise Hung(f"an example took more than {SECONDS} s")

    status = Path("/proc/self/status").read_text()
    used = next(int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("VmSize"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    was = signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, was)
        resource.setrlimit(resource.RLIMIT_AS, before)


def holds(call: Callable[[], Any]) -> bool:
    """Whether it was read; False: refused by a documented error.  Anything else is raised."""
    try:
        with bounded():
            call()
    except DOCUMENTED as error:
        told = str(error)
    else:
        return True
    assert told.strip(), "an error without a word"
    assert SECRET not in told
    return False


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A directory to work in; nothing may appear beside it, in the home or in the current directory."""
    top = tmp_path_factory.mktemp("fuzz")
    for name in ("work", "home", "here", "temp"):
        (top / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(top / "home"))
        patch.setenv("DML_SECRET", SECRET)
        patch.setenv("XDG_CACHE_HOME", str(top / "work" / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(tempfile, "tempdir", str(top / "temp"))
        patch.chdir(top / "here")
        before = around(top)
        yield top / "work"
        assert around(top) == before, "files outside of the output directory"
        assert not OUTSIDE.exists()


def around(top: Path) -> set[Path]:
    """All but the directory to work in, and the directories above."""
    outside = {p for n in ("home", "here", "temp") for p in (top / n).rglob("*")}
    outside |= set(top.iterdir()) | set(Path("/").iterdir())
    return outside | {p for p in Path(__file__).parents[1].iterdir() if not p.name.startswith(".")}


# ---------------------------------------------------------------- damage

NASTY_TEXT = [
    *("", " ", "\0", "a\0b", "\n", "\r\n", "\ufeff", "\u202e", "é\u0301", "x" * 300, "y" * 200_000),
    *(
        "../../x",
        f"../../../../../../../../{OUTSIDE}/x",
        f"{OUTSIDE}/x",
        "/etc/passwd",
        "/dev/zero",
    ),
    *(
        "C:\\x",
        "..\\..\\x",
        "~/x",
        "~nosuchuser/x",
        "$HOME",
        "${oc.env:DML_SECRET}",
        "${.}",
        "${",
        "???",
    ),
    *(
        "null",
        "nan",
        "-1",
        "1e999",
        "9" * 400,
        "0x10",
        "true",
        "=HYPERLINK()",
        "<script>",
        "'",
        '"',
    ),
    *("os.system", "hf://a/b", "a,b", "[", "{a:b}", "%s%n", "\x1b[31m"),
]
NASTY_JSON: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**70, -(2**70), 0.5, 1e308, -0.0, float("nan")),
    *(float("inf"), [], {}, [[]], [None], {"": None}, {"_target_": "os.system", "command": "x"}),
    *([0] * 3, ["../x"], {"a": {"b": {"c": []}}}, "\ud800"),
]
words_of_files = st.sampled_from(NASTY_TEXT) | st.text(max_size=12)
values = st.sampled_from([*NASTY_JSON, *NASTY_TEXT]) | st.integers() | st.floats() | st.text()
strokes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "drop", "insert", "repeat", "zero", "high"]),
        st.integers(0, 2**32),
        st.integers(0, 64),
        st.binary(max_size=8),
    ),
    min_size=1,
    max_size=5,
)


def damaged(data: bytes, done: list[tuple[str, int, int, bytes]]) -> bytes:
    """Bytes cut, flipped, left out, put in and repeated; half of it within the first 200."""
    kept = bytearray(data)
    for kind, number, length, more in done:
        reach = min(len(kept), 200) if number % 2 else len(kept)
        at = number // 2 % (reach + 1)
        if kind == "flip" and at < len(kept):
            kept[at] ^= 1 << length % 8
        elif kind == "cut":
            del kept[at:]
        elif kind == "drop":
            del kept[at : at + length]
        elif kind == "insert":
            kept[at:at] = more
        elif kind == "repeat":
            kept[at:at] = kept[at : at + length] * 3
        else:
            stop = min(len(kept), at + length)
            kept[at:stop] = (b"\0" if kind == "zero" else b"\xff") * (stop - at)
    return bytes(kept)


def spots(node: Any, path: tuple = ()) -> list[tuple]:
    """Where every value of a JSON document stands."""
    found = [path] if path else []
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        below = (*path, key)
        found += spots(value, below) if isinstance(value, dict | list) and value else [below]
    return found


edits = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "drop", "add"]), values),
    min_size=1,
    max_size=3,
)


def edited(document: Any, done: list[tuple[int, str, Any]]) -> Any:
    """A JSON document with values replaced, left out and added."""
    document = copy.deepcopy(document)
    for number, kind, value in done:
        places = spots(document)
        if not places:
            break
        *path, last = places[number % len(places)]
        node = document
        for part in path:
            node = node[part]
        if kind == "set" or (kind == "add" and isinstance(node, list)):
            node[last] = copy.deepcopy(value)
        elif kind == "drop":
            del node[last]
        else:
            node["added"] = copy.deepcopy(value)
    return document


def text_of(document: Any) -> bytes:
    return json.dumps(document).encode()


# ---------------------------------------------------------------- targets
# Each returns a strategy and what is done with an example of it, in a directory of its own.

Target = tuple[st.SearchStrategy, Callable[[Any], Any]]


def bundle_description(folder: Path) -> Target:
    """encoder.json with any value changed."""
    path = tiny_bundle(folder / "bundle", dim=8)
    good = json.loads((path / bundle_format.DESCRIPTION).read_bytes())

    def read(done: Any) -> None:
        content = damaged(text_of(good), done[1]) if done[0] else text_of(edited(good, done[1]))
        (path / bundle_format.DESCRIPTION).write_bytes(content)
        holds(lambda: dml.load_encoder(path))

    return st.tuples(st.just(True), strokes) | st.tuples(st.just(False), edits), read


def bundle_weights(folder: Path) -> Target:
    """weights.safetensors and probe.npz damaged, with checksums that say they are right."""
    path = tiny_bundle(folder / "bundle", dim=8)
    kept = {name: (path / name).read_bytes() for name in ("weights.safetensors", "probe.npz")}
    told = json.loads((path / bundle_format.DESCRIPTION).read_bytes())

    def read(done: Any) -> None:
        name, marks, header = done
        content = damaged(kept[name], marks)
        if header is not None and name.startswith("weights"):  # one that promises what is not there
            content = header.to_bytes(8, "little") + kept[name][8:]
        for file, data in (kept | {name: content}).items():
            (path / file).write_bytes(data)
        seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / bundle_format.DESCRIPTION).write_bytes(
            text_of(told | {"files": told["files"] | {name: seal}})
        )
        holds(lambda: dml.load_encoder(path))

    header = st.none() | st.integers(0, 2**64 - 1) | st.sampled_from([2**63, 2**40, 100_000_001])
    return st.tuples(st.sampled_from(sorted(kept)), strokes, header), read


def labels_file(folder: Path) -> Target:
    """A labels file with odd cells, odd quoting, odd bytes."""
    root = made_runs.images(folder / "images")
    rows = list(csv.reader((root / "labels.csv").open(newline="")))

    def read(done: Any) -> None:
        changes, end, quote, mark, marks, more = done
        table = copy.deepcopy(rows)
        for number, word in changes:
            row = table[number % len(table)]
            row[number // 7 % len(row)] = word
        table += [table[number % len(table)] for number in more]
        stream = io.StringIO()
        csv.writer(stream, lineterminator=end, quoting=quote, escapechar="\\").writerows(table)
        data = (mark + stream.getvalue()).encode("utf-8", "surrogatepass")
        (root / "labels.csv").write_bytes(damaged(data, marks))
        holds(lambda: csv_file.load(root=str(root), labels="labels.csv"))

    strategy = st.tuples(
        st.lists(st.tuples(st.integers(0, 10**6), words_of_files), max_size=4),
        st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\t\n"]),
        st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]),
        st.sampled_from(["", "\ufeff", "sep=,\n", "#"]),
        st.just([]) | strokes,
        st.lists(st.integers(0, 100), max_size=2),
    )
    return strategy, read


def annotations(name: str) -> Callable[[Path], Target]:
    """The lists, .mat files and arrays of a published set, damaged one at a time."""

    def target(folder: Path) -> Target:
        module = importlib.import_module(f"dml.data.sets.{name}")
        small = archives.SMALL if name in archives.SMALL else further_archives.SMALL
        makers = archives.MAKERS if name in archives.MAKERS else further_archives.MAKERS
        patch, layouts = pytest.MonkeyPatch(), [{}]
        if name == "cars196":
            layouts = [{"layout": layout} for layout in ("annos", "devkit", "kaggle")]
        roots = [makers[name](folder / str(n), **options) for n, options in enumerate(layouts)]
        lists = [
            (root, path)
            for root in roots
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.suffix.lower() not in (".jpg", ".jpeg", ".png")
        ]
        kept = {path: path.read_bytes() for _, path in lists}
        fresh = folder / "fresh"

        def read(done: Any) -> None:
            number, marks, line = done
            root, path = lists[number % len(lists)]
            content = damaged(kept[path], marks)
            if line is not None:
                lines = kept[path].split(b"\n")
                cells = lines[number % len(lines)].split(b" ")
                cells[number // 3 % len(cells)] = line.encode("utf-8", "surrogatepass")
                lines[number % len(lines)] = b" ".join(cells)
                content = b"\n".join(lines)
            if name in ("cifar10", "cifar100", "mnist"):  # these write pictures, once
                shutil.rmtree(fresh, ignore_errors=True)
                shutil.copytree(root, fresh)
                (fresh / path.relative_to(root)).write_bytes(content)
                use = fresh
            else:
                use = root
            patch.setattr(module, "COUNTS", small[name])
            if name == "flowers102":  # whose one list has a published checksum
                further_archives.expect_labels(patch, module, root)
            if use is root:
                path.write_bytes(content)
            try:
                holds(lambda: module.load(root=str(use)))
            finally:
                patch.undo()
                path.write_bytes(kept[path])

        return st.tuples(
            st.integers(0, 10**6), strokes, st.none() | st.sampled_from(NASTY_TEXT)
        ), read

    return target


def run_record(folder: Path) -> Target:
    """record.json changed and sealed again, read by everything that reads one."""
    images = made_runs.images(folder / "images")
    run = made_runs.finished(folder / "run", images)
    good = record.read_json(run / record.FILE)
    parts = ("overrides", "config", "protocol", "checkpoint", "metrics", "hardware", "data")

    def read(done: Any) -> None:
        part, changes, marks = done
        content = good | edited({part: good[part]}, changes)
        with contextlib.suppress(ValueError):
            content = record.sealed(content)
        data = text_of(content)
        (run / record.FILE).write_bytes(damaged(data, marks))
        if not holds(lambda: record.read(run)):
            return
        holds(lambda: measure.run_encoder(run))
        holds(lambda: eval_command.checked([f"run={run}"]))
        holds(lambda: export_command.checked([f"run={run}", f"out={folder / 'none'}"]))
        holds(lambda: records.add([run], folder))

    return st.tuples(st.sampled_from(parts), edits, st.just([]) | strokes), read


def run_config(folder: Path) -> Target:
    """config.yaml of a run that is to be resumed."""
    composed, _ = compose.compose_all([])
    path = folder / "config.yaml"
    good = OmegaConf.to_yaml(composed.config)

    def read(done: Any) -> None:
        at, text, marks = done
        lines = good.splitlines()
        lines[at % len(lines)] = text
        path.write_bytes(damaged("\n".join(lines).encode("utf-8", "surrogatepass"), marks))
        holds(lambda: saved.read(path))
        holds(lambda: check.changed_options(composed, folder))

    text = words_of_files | st.sampled_from(
        ["a: &a [x]", "b: *a", "!!python/object/apply:os.system ['x']", "- -", "? ?", "\t", "%TAG"]
    )
    return st.tuples(st.integers(0, 10**4), text, st.just([]) | strokes), read


def checkpoint(folder: Path) -> Target:
    """A checkpoint damaged anywhere."""
    images = made_runs.images(folder / "images")
    run = made_runs.finished(folder / "run", images)
    path = run / "checkpoints/last.ckpt"
    good = path.read_bytes()
    composed, _ = compose.compose_all(made_runs.words(images))
    encoder = build.encoder(composed.config)

    def read(marks: Any) -> None:
        path.write_bytes(damaged(good, marks))
        holds(lambda: measure.load_encoder_weights(encoder, path))

    return strokes, read


def index(folder: Path) -> Target:
    """index.json and the files it names, with checksums that say they are right."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    with (folder / "v.npz").open("wb") as file:
        np.savez(file, embeddings=vectors, labels=np.arange(40) % 4)
    words = [f"embeddings={folder / 'v.npz'}", f"out={folder / 'index'}", "index=HNSW8"]
    assert index_command.run(words) == 0
    path = folder / "index"
    manifest = json.loads((path / index_files.FILE).read_bytes())
    del manifest["checksum"]
    kept = {name: (path / name).read_bytes() for name in manifest["files"]}
    # The C++ of Faiss reads its own file; it trusts it, so only damage that the checksum tells is tried.
    sealed = sorted(name for name in kept if not name.startswith("faiss-"))

    def read(done: Any) -> None:
        name, marks, changes = done
        told = copy.deepcopy(manifest)
        for file, data in kept.items():
            (path / file).write_bytes(data)
        if name is not None:
            content = damaged(kept[name], marks)
            (path / name).write_bytes(content)
            if name in sealed:
                told["files"][name] = {
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
        if changes:
            told = edited(told, changes)
        text = text_of(told | {"checksum": index_files.digest_of(told)})
        (path / index_files.FILE).write_bytes(text)

        def use() -> None:
            found = open_index(path)
            if found.contradictions():
                return
            with contextlib.suppress(ValueError):  # of a query that does not fit
                found.search(vectors[:2, : found.dim], 3)
            found.items(found.live_rows())

        holds(use)

    return st.tuples(st.none() | st.sampled_from(sorted(kept)), strokes, st.just([]) | edits), read


def embeddings(folder: Path) -> Target:
    """.npz, .npy, .parquet and the labels beside them, damaged or of odd types and shapes."""
    import pyarrow
    from pyarrow import parquet

    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    labels = np.arange(12) % 3
    with (folder / "a.npz").open("wb") as file:
        np.savez(file, embeddings=vectors, labels=labels, ids=np.arange(12), similarity="cosine")
    np.save(folder / "a.npy", vectors)
    np.save(folder / "l.npy", labels)
    (folder / "l.csv").write_text("label,id,is_query\n" + "a,1,true\nb,2,false\n" * 6)
    table = pyarrow.table({"embedding": list(vectors), "label": labels})
    parquet.write_table(table, folder / "a.parquet")
    kept = {n: (folder / n).read_bytes() for n in ("a.npz", "a.npy", "l.npy", "l.csv", "a.parquet")}
    odd = [
        *(np.zeros((0, 4)), np.zeros(12), np.zeros((12, 4), bool), np.full((12, 4), np.nan)),
        *(np.zeros((2, 2, 2)), np.array(3.0), np.array(["a"] * 12), np.zeros((12, 4), complex)),
        *(np.array([2**70] * 12, dtype=float), np.zeros(12, "M8[s]"), np.zeros(12, "V3")),
        *(np.full(12, 2**63, np.uint64), np.array(["\ud800"] * 12), np.zeros((12, 0))),
    ]

    def read(done: Any) -> None:
        name, marks, arrays = done
        for file, data in kept.items():
            (folder / file).write_bytes(data)
        if arrays:
            names = ("embeddings", "labels", "ids", "is_query", "paths", "similarity")
            drawn = {names[k]: odd[v] for k, v in arrays}
            with (folder / "a.npz").open("wb") as file:
                np.savez(file, **({"embeddings": vectors, "labels": labels} | drawn))
            name = "a.npz"
        else:
            (folder / name).write_bytes(damaged(kept[name], marks))
        main = name if name.startswith("a.") else "a.npy"
        beside = folder / (name if name.startswith("l.") else "l.npy")
        given = beside if main == "a.npy" else None
        holds(lambda: embedding_files.load(folder / main, given))
        words = [f"embeddings={folder / main}", f"out={folder / 'out'}"]
        if main != "a.parquet":
            words += [f"labels={beside}"] if given else []
            holds(lambda: index_command.run(words))
            shutil.rmtree(folder / "out", ignore_errors=True)

    arrays = st.lists(st.tuples(st.integers(0, 5), st.integers(0, len(odd) - 1)), max_size=2)
    return st.tuples(st.sampled_from(sorted(kept)), strokes, arrays), read


def pictures(folder: Path) -> Target:
    """Image files of every format, damaged."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    kept = {}
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, kind)
        kept[kind] = stream.getvalue()

    def read(done: Any) -> None:
        kind, marks = done
        path = folder / "image"
        path.write_bytes(damaged(kept[kind], marks))
        holds(lambda: open_rgb(path))

    return st.tuples(st.sampled_from(sorted(kept)), strokes), read


def command_line(folder: Path) -> Target:
    """Real keys with nasty values, Hydra's own signs, long words; nothing trains."""
    composed, _ = compose.compose_all([])
    images = made_runs.images(folder / "images")  # small: the embedded set takes seconds to draw
    keys = sorted({key for key, _ in saved.entries(OmegaConf.to_container(composed.config))})
    keys += compose.groups()
    scraps = [
        *("-m", "--multirun", "+", "~loss", "++a=b", "+a@b=c", "hydra.run.dir=x", "a=", "=", "=b"),
        *("loss=a,b", "seed=range(1,3)", "loss=choice(a,b)", "x=sort(1,2)", "x=glob(*)", "x={a:b}"),
        *("x=[1,2", "x='a", 'x="', "x=\\", "x=${a}", "x=${oc.env:DML_SECRET}", "x=extend_list(1)"),
        *("loss=sum", "loss.third=circle", "loss.first=null", "~loss.second", "unpin=true", "é=é"),
        *(
            "experiment=null",
            "search=circle",
            "launcher=ray",
            "post=[flip]",
            "data=csv",
            "data=folder",
        ),
        *(
            "backbone=timm",
            "backbone.kwargs.a=1",
            "data.root=/",
            f"run_dir={OUTSIDE}",
            "ckpt_path=last",
        ),
    ]
    commands = {
        "train": (cli.train_command, ["dry_run=true", *made_runs.words(images)]),
        "eval": (eval_command.run, []),
        "report": (report_command.run, [f"root={folder}"]),
        "export": (export_command.run, []),
        "index": (index_command.run, []),
        "search": (search_command.run, []),
        "data": (data_command.run, []),
        "doctor": (data_command.run, ["doctor"]),
    }
    own = [
        *(
            "run",
            "runs",
            "compare",
            "encoder",
            "embeddings_file",
            "out",
            "labels",
            "split",
            "format",
        ),
        *(
            "images",
            "index",
            "query",
            "add",
            "check",
            "remove",
            "sweep",
            "root",
            "k",
            "html",
            "similarity",
        ),
        *(
            "embeddings",
            "per_query",
            "resamples",
            "calibrate",
            "tune",
            "rebuild",
            "fmr",
            "int8",
        ),
    ]

    def read(done: Any) -> None:
        name, typed = done
        command, first = commands[name]
        log, heard = logging.getLogger("dml"), io.StringIO()
        handler = logging.StreamHandler(heard)
        log.addHandler(handler)
        try:
            with bounded(), contextlib.redirect_stdout(heard):
                code = cli.exit_code(command, [*first, *typed])
        finally:
            log.removeHandler(handler)
        assert code in (0, 1, 2), (name, typed)
        assert "not foreseen" not in heard.getvalue(), heard.getvalue()
        assert (
            SECRET not in heard.getvalue() or name == "train"
        )  # one's own word on one's own terminal
        if code:
            assert heard.getvalue().strip(), (name, typed)

    def risky(word: str) -> bool:
        """What would really begin: training, downloads, Hydra's own pages, a page at the root."""
        key = word.lstrip("+~").partition("=")[0]
        return key in ("dry_run", "prepare", "--help", "-h") or word.startswith(("hf:", "--"))

    word = st.builds(
        lambda key, value, sign: f"{sign}{key}={value}",
        st.sampled_from(keys) | st.sampled_from(own),
        words_of_files.filter(lambda value: "hf://" not in value and len(value) < 10**4)
        | st.sampled_from(
            ["1", "0", "-5", "true", "[1,2]", "x", "glyphs", "circle", "1e-3", "none"]
        ),
        st.sampled_from(["", "", "", "+", "~", "++"]),
    )
    words = st.lists((word | st.sampled_from(scraps)).filter(lambda w: not risky(w)), max_size=4)
    names = [*commands, "train", "train", "train"]
    return st.tuples(st.sampled_from(names), words), read


TARGETS: dict[str, Callable[[Path], Target]] = {
    "bundle_description": bundle_description,
    "bundle_weights": bundle_weights,
    "labels_file": labels_file,
    **{
        f"annotations_{name}": annotations(name)
        for name in (*archives.MAKERS, *further_archives.MAKERS)
        if name not in ("ut_zappos50k", "omniglot")  # folders alone, no lists
    },
    "run_record": run_record,
    "run_config": run_config,
    "checkpoint": checkpoint,
    "index": index,
    "embeddings": embeddings,
    "pictures": pictures,
    "command_line": command_line,
}
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_examples(place, name):
    """The same in every run."""
    folder = place / name
    folder.mkdir()
    strategy, read = TARGETS[name](folder)
    check = settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=QUIET,
        phases=[Phase.generate],
    )(given(strategy)(read))
    check()


@pytest.mark.slow
@pytest.mark.skipif(MINUTES <= 0, reason="NOT RUN: say for how long, DML_FUZZ_MINUTES=10")
@pytest.mark.parametrize("name", TARGETS)
def test_a_long_hunt(place, name):
    """As many examples as fit into this target's share of the time, others in every run."""
    folder = place / f"long_{name}"
    folder.mkdir()
    strategy, read = TARGETS[name](folder)
    end = time.monotonic() + 60 * MINUTES / len(TARGETS)
    tried, number = 0, int(time.time())

    def counted(example: Any) -> None:
        nonlocal tried
        tried += 1
        read(example)

    rounds = settings(
        max_examples=25,
        deadline=None,
        database=None,
        suppress_health_check=QUIET,
        phases=[Phase.generate, Phase.shrink],
        print_blob=True,
    )
    try:
        while time.monotonic() < end:
            number += 1
            seed(number)(rounds(given(strategy)(counted)))()
    finally:
        print(f"\n{name}: {tried} examples")


def test_the_hunt_would_find_it(place):
    """An error of another kind, one without a word, and one that hangs are all told."""
    with pytest.raises(KeyError):
        holds(lambda: {}["x"])
    with pytest.raises(AssertionError, match="without a word"):
        holds(lambda: (_ for _ in ()).throw(RunError("")))
    with pytest.raises(MemoryError), bounded():
        bytearray(2 * MEMORY)
    before, stray = around(place.parent), place.parent / "here" / "stray"
    stray.touch()
    assert around(place.parent) - before == {stray}
    stray.unlink()
