"""Give the commands bad input, and write down what they say: docs/bad_input.md.

python docs/bad_input.py               write the page
python docs/bad_input.py check=true    write nothing; list the lines that differ and exit with 1 if any does
python docs/bad_input.py only=TEXT     show the lines with TEXT in them, write nothing

Every line is a real command on real files, made small in a temporary folder.  The page is not written if a
command does not fail, fails with a traceback, or leaves its output directory half-written.
"""

import contextlib
import csv
import io
import json
import logging
import os
import pickle
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "data")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import archives  # noqa: E402
import made_runs  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from bundles import tiny_bundle  # noqa: E402
from full_disk import full_disk  # noqa: E402

from dml import cli, data_command, eval_command, record  # noqa: E402
from dml.data.sets import cub200  # noqa: E402
from dml.export import command as export_command  # noqa: E402
from dml.index import command as index_command  # noqa: E402
from dml.index import search_command  # noqa: E402
from dml.report import command as report_command  # noqa: E402

PAGE = DOCS / "bad_input.md"
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "dml-train": cli.train_command,
    "dml-eval": eval_command.run,
    "dml-data": data_command.run,
    "dml-report": report_command.run,
    "dml-export": export_command.run,
    "dml-index": index_command.run,
    "dml-search": search_command.run,
}
LINES, WIDTH = 5, 240  # of a message, as shown
# What differs from run to run, or grows with the project, and how it is shown.
CHANGING = {
    r"0x[0-9a-f]{6,}": "0x...",
    r"\b(vectors|items|removed|faiss)-[0-9a-f]{12}": r"\1-...",
    r"\d+ MB are free": "... MB are free",
    r"(Options: [^\n]{30})[^\n]+": r"\1 ...",
}

# Makes what a line needs, in the temporary folder, which is the current directory.
Prepare = Callable[[], Any]


@dataclass
class Case:
    """what: the mistake in words.  typed: the command line.  prepare: makes the bad file.

    within: a context that the command runs in, such as a full disk.  must_not: a file that must not be
    there afterwards.  shown: the command line on the page, where it is not what is typed.
    """

    what: str
    typed: str
    prepare: Prepare | None = None
    within: Callable[[], Any] = contextlib.nullcontext
    must_not: str = "canary"
    shown: str | None = None
    words: list[str] = field(default_factory=list)  # besides, not shown: the rest of a short run


@dataclass(frozen=True)
class Said:
    """A line of the page."""

    section: str
    what: str
    command: str
    code: int
    message: str


# ---------------------------------------------------------------- what is bad


class Touch:
    """Unpickling this makes the file `canary`."""

    def __reduce__(self):
        return (Path.touch, (Path("canary").absolute(),))


def copied(source: str, target: str) -> Path:
    """A file or directory once more, in place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    if Path(source).is_dir():
        return Path(shutil.copytree(source, target))
    return Path(shutil.copy(source, target))


def flip(path: Path, at: int = -100) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, share: float = 0.5) -> None:
    """Keep the first part."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def labels(change: Callable[[list[list[str]]], Any], encoding: str = "utf-8") -> Prepare:
    """images/bad.csv: labels.csv with rows changed."""

    def prepare() -> None:
        with Path("images/labels.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        change(rows)
        with Path("images/bad.csv").open("w", newline="", encoding=encoding) as file:
            csv.writer(file).writerows(rows)

    return prepare


def broken_image(data: bytes | None = None) -> Prepare:
    """broken/: the images, of which one is cut or other bytes."""

    def prepare() -> None:
        path = copied("images", "broken") / "0_0.png"
        cut(path) if data is None else path.write_bytes(data)

    return prepare


def bad_run(change: Callable[[dict[str, Any]], Any], seal: bool = True) -> Prepare:
    """bad/: the run, its record changed; seal: with a checksum that is right."""

    def prepare() -> None:
        path = copied("run", "bad")
        if seal:
            made_runs.resealed(path, change)
            return
        content = json.loads((path / record.FILE).read_text())
        change(content)
        (path / record.FILE).write_text(json.dumps(content))

    return prepare


def bad_file(name: str, data: bytes | Callable[[Path], Any], source: str = "run") -> Prepare:
    """bad/: the run (or the bundle, the index), one of its files replaced or damaged."""

    def prepare() -> None:
        folder = copied(source, "bad")
        (path,) = folder.glob(name)
        path.write_bytes(data) if isinstance(data, bytes) else data(path)

    return prepare


def described(change: Callable[[dict[str, Any]], Any]) -> Prepare:
    """bad/: the bundle, its encoder.json changed."""

    def change_file(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return bad_file("encoder.json", change_file, "encoder")


def unfinished(text: str | None = None, checkpoint: bytes | None = None) -> Prepare:
    """stopped/: a run that was stopped; its config.yaml and checkpoint as given."""

    def prepare() -> None:
        folder = copied("run", "stopped")
        (folder / record.FILE).unlink()
        if text is not None:
            (folder / "config.yaml").write_text(text)
        if checkpoint is not None:
            (folder / "checkpoints" / "last.ckpt").write_bytes(checkpoint)

    return prepare


def saved(name: str, **arrays: Any) -> Prepare:
    """An .npz of arrays."""
    return lambda: np.savez(name, **arrays)


VECTORS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)


@contextlib.contextmanager
def as_nobody(*writable: str) -> Iterator[None]:
    """Without the rights of root, whom no folder is closed to; `closed` is one that cannot be written."""
    Path("closed").mkdir(exist_ok=True)
    Path("closed").chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield
    Path("closed").chmod(0o755)


@contextlib.contextmanager
def port_taken() -> Iterator[None]:
    """Another program listens at port 8765."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 8765))
        taken.listen()
        yield


@contextlib.contextmanager
def without(module: Any, *packages: str) -> Iterator[None]:
    """As if packages were not installed."""
    there = module.find_spec
    hidden = lambda name: None if name in packages else there(name)  # noqa: E731
    with patch.object(module, "find_spec", hidden):
        yield


@contextlib.contextmanager
def small_cub() -> Iterator[None]:
    """A CUB-200-2011 of 59 images passes for the published one."""
    with patch.object(cub200, "COUNTS", archives.SMALL["cub200"]):
        yield


def cub_list(name: str, line: str) -> Prepare:
    """cub/: CUB-200-2011 with a line of a list replaced."""

    def prepare() -> None:
        shutil.rmtree("cub", ignore_errors=True)
        path = archives.cub200(Path("cub")) / "CUB_200_2011" / name
        path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]) + "\n")

    return prepare


# ---------------------------------------------------------------- the list

CSV = "data=csv data.root=images data.labels=bad.csv"
RUN = made_runs.words(Path("images"))[3:]  # a short run's other words


def training(what: str, typed: str, prepare: Prepare | None = None, **more: Any) -> Case:
    """A run of seconds on images/, with something wrong."""
    here = [] if "data=" in typed else ["data=csv", "data.root=images", "data.labels=labels.csv"]
    return Case(what, f"dml-train {typed}", prepare, words=[*here, *RUN], **more)


def cases() -> dict[str, list[Case]]:
    """Section -> its lines."""
    return {
        "Options": [
            Case("a group's file misspelt", "dml-train loss=circel"),
            Case("an option misspelt", "dml-train los=circle"),
            Case("out of range", "dml-train loss.margin=9"),
            Case("no number", "dml-train loss.margin=abc"),
            Case("an option that is not there, by force", "dml-train +loss.margn=1"),
            Case("two values without -m", "dml-train loss=circle,triplet"),
            Case("no value", "dml-train loss"),
            Case("a flag", "dml-train --gpu"),
            Case("a group taken out", "dml-train ~loss"),
            Case("an option of Hydra itself", "dml-train hydra.run.dir=x"),
            Case("a bracket that is not closed", "dml-train evaluation.metrics=[recall@1"),
            Case("what does not go together", "dml-train loss=circle sampler=random"),
            Case("a miner for a loss without", "dml-train loss=proxy_nca miner=semihard"),
            Case("a metric misspelt", "dml-train evaluation.metrics=[recal@1]"),
            Case("a seed below 0", "dml-train seed=-1"),
            Case("an experiment that is not there", "dml-train experiment=circle"),
            Case(
                "an experiment's pinned value",
                "dml-train experiment=birds100_circle loss.margin=0.3",
            ),
            Case("an experiment from elsewhere", "dml-train experiment=../../tmp/mine"),
            Case("resume what?", "dml-train ckpt_path=last"),
            Case("two mistakes", "dml-train loss.margin=9 sampler=random"),
            Case("a sweep with an illegal run", "dml-train -m loss=circle seed=0,-1 run_dir=sweep"),
        ],
        "Images and their labels": [
            Case("no such directory", "dml-train data=folder data.root=images/nowhere"),
            Case(
                "an empty directory",
                "dml-train data=folder data.root=empty",
                lambda: Path("empty").mkdir(),
            ),
            Case(
                "no column label",
                f"dml-train {CSV}",
                labels(lambda rows: rows[0].__setitem__(1, "class")),
            ),
            Case(
                "an image that is not there",
                f"dml-train {CSV}",
                labels(lambda rows: rows.append(["lost.png", "8", "test"])),
            ),
            Case("an image twice", f"dml-train {CSV}", labels(lambda rows: rows.append(rows[1]))),
            Case(
                "an unknown split",
                f"dml-train {CSV}",
                labels(lambda rows: rows[1].__setitem__(2, "trian")),
            ),
            Case(
                "a class in two splits",
                f"dml-train {CSV}",
                labels(lambda rows: rows[1].__setitem__(2, "test")),
            ),
            Case("a row too long", f"dml-train {CSV}", labels(lambda rows: rows[1].append("more"))),
            Case("UTF-16", f"dml-train {CSV}", labels(lambda rows: None, "utf-16")),
            Case(
                "a path with a null character",
                f"dml-train {CSV}",
                labels(lambda rows: rows[1].__setitem__(0, "a\0b.png")),
            ),
            Case("another directory than the data set's", "dml-train data=cub200 data.root=images"),
            Case(
                "a list that was damaged",
                "dml-train data=cub200 data.root=cub",
                cub_list("images.txt", "1"),
                small_cub,
            ),
            Case(
                "a list with a class that is no number",
                "dml-train data=cub200 data.root=cub",
                cub_list("image_class_labels.txt", "1 one"),
                small_cub,
            ),
            training(
                "a truncated image",
                "data=csv data.root=broken data.labels=labels.csv run_dir=out",
                broken_image(),
            ),
            training(
                "an image that is text",
                "data=csv data.root=broken data.labels=labels.csv run_dir=out",
                broken_image(b"<html>not found</html>"),
            ),
            Case("a data set that dml does not know", "dml-data check=cub2011 root=images"),
            Case("one that is not there", "dml-data check=cub200 root=images"),
            Case(
                "one behind a form",
                "dml-data prepare=inshop root=empty",
                lambda: Path("empty").mkdir(exist_ok=True),
            ),
            Case(
                "a directory with damage",
                "dml-data doctor data=csv data.root=broken data.labels=labels.csv out=doctor.html",
                broken_image(),
            ),
        ],
        "Weights": [
            training("no such file", "backbone.weights=lost.safetensors run_dir=out"),
            training(
                "a truncated file",
                "backbone.weights=cut.safetensors run_dir=out",
                lambda: cut(copied("encoder/weights.safetensors", "cut.safetensors")),
            ),
            training(
                "another network's", "backbone.weights=encoder/weights.safetensors run_dir=out"
            ),
            training(
                "a pickle that runs code",
                "backbone.weights=evil.pth run_dir=out",
                lambda: torch.save({"a": Touch()}, "evil.pth"),
            ),
            training(
                "the same by way of timm",
                "backbone.kwargs.checkpoint_path=evil.pth run_dir=out",
                lambda: torch.save({"a": Touch()}, "evil.pth"),
            ),
            training("no such model", "backbone.name=resnet5000 run_dir=out"),
            training("an argument that it does not take", "backbone.kwargs.depth=9 run_dir=out"),
        ],
        "A finished run": [
            Case("no run there", "dml-eval run=images"),
            Case(
                "its record was edited",
                "dml-eval run=bad",
                bad_run(lambda c: c["metrics"]["test"].update({"recall@1": 0.123}), seal=False),
            ),
            Case("its record is half there", "dml-eval run=bad", bad_file(record.FILE, cut)),
            Case(
                "its record lacks an entry", "dml-eval run=bad", bad_run(lambda c: c.pop("config"))
            ),
            Case(
                "its record names code to call",
                "dml-eval run=bad",
                bad_run(
                    lambda c: c["config"].update(
                        backbone={"_target_": "os.system", "command": "touch canary"}
                    )
                ),
            ),
            Case(
                "the same, for another command",
                "dml-export run=bad out=made",
                bad_run(
                    lambda c: c["config"]["head"].update(
                        _target_="builtins.exec", _args_=["open('canary', 'w')"]
                    )
                ),
                must_not="made",
            ),
            Case(
                "the same, deep within",
                "dml-report run=bad",
                bad_run(
                    lambda c: c["config"]["backbone"]["kwargs"].update(
                        act_layer={"_target_": "subprocess.Popen", "args": ["touch", "canary"]}
                    )
                ),
            ),
            Case(
                "its record asks for the environment",
                "dml-eval run=bad",
                bad_run(lambda c: c["overrides"].append("data.root=${oc.env:HOME}")),
            ),
            Case(
                "its checkpoint is outside of it",
                "dml-eval run=bad out=out",
                bad_run(lambda c: c["checkpoint"].update(file="../run/checkpoints/last.ckpt")),
            ),
            Case(
                "its checkpoint is gone",
                "dml-export run=bad out=made",
                bad_file("checkpoints/last.ckpt", Path.unlink),
                must_not="made",
            ),
            Case(
                "its checkpoint is truncated",
                "dml-eval run=bad out=out",
                bad_file("checkpoints/last.ckpt", cut),
            ),
            Case(
                "its checkpoint is a pickle that runs code",
                "dml-eval run=bad out=out",
                bad_file(
                    "checkpoints/last.ckpt", lambda path: path.write_bytes(pickle.dumps(Touch()))
                ),
            ),
            Case(
                "its images have changed",
                "dml-report run=run data.root=broken",
                broken_image_gone(),
            ),
            training("another run's directory", "run_dir=run"),
        ],
        "A stopped run": [
            training("begun again without a word", "run_dir=stopped", unfinished()),
            training(
                "resumed with another option",
                "run_dir=stopped ckpt_path=last head.dim=16",
                unfinished(config_text()),
            ),
            training(
                "its config.yaml names code",
                "run_dir=stopped ckpt_path=last",
                unfinished("a: !!python/object/apply:os.system ['touch canary']\n"),
            ),
            training(
                "its checkpoint is truncated",
                "run_dir=stopped ckpt_path=last",
                unfinished(config_text(), b"PK\3\4"),
            ),
        ],
        "A bundle": [
            Case(
                "none there",
                "dml-eval encoder=images data=csv data.root=images data.labels=labels.csv",
            ),
            Case(
                "a byte of its weights changed",
                "dml-eval encoder=bad data=csv data.root=images data.labels=labels.csv out=out",
                bad_file("weights.safetensors", flip, "encoder"),
            ),
            Case(
                "its description names code",
                "dml-index encoder=bad images=images out=made",
                described(lambda c: c["head"].update(_target_="os.system")),
                must_not="made",
            ),
            Case(
                "its description names a file elsewhere",
                "dml-index encoder=bad images=images out=made",
                described(
                    lambda c: c["files"].update({"../../x": {"bytes": 1, "sha256": "0" * 64}})
                ),
                must_not="made",
            ),
            Case(
                "of a later version",
                "dml-index encoder=bad images=images out=made",
                described(lambda c: c.update(format_version=99)),
                must_not="made",
            ),
            Case("in place of another file", "dml-export run=run out=images"),
            Case("an unknown format", "dml-export run=run out=made format=onx", must_not="made"),
            Case(
                "a package that is missing",
                "dml-export run=run out=made format=onnx",
                within=lambda: without(export_command, "onnx", "onnxruntime"),
                must_not="made",
            ),
        ],
        "Saved embeddings": [
            Case("no labels", "dml-eval embeddings_file=e.npz", saved("e.npz", embeddings=VECTORS)),
            Case(
                "not a number",
                "dml-eval embeddings_file=e.npz",
                saved("e.npz", embeddings=VECTORS * np.nan, labels=np.arange(12)),
            ),
            Case(
                "labels of another length",
                "dml-eval embeddings_file=e.npz",
                saved("e.npz", embeddings=VECTORS, labels=np.arange(3)),
            ),
            Case(
                "a pickle",
                "dml-eval embeddings_file=e.npz",
                saved("e.npz", embeddings=np.array([Touch()], object), labels=np.arange(1)),
            ),
            Case(
                "cut short",
                "dml-eval embeddings_file=e.npz",
                lambda: (
                    saved("e.npz", embeddings=VECTORS, labels=np.arange(12))(),
                    cut(Path("e.npz")),
                ),
            ),
            Case(
                "another kind of file",
                "dml-index embeddings=images/labels.csv out=made",
                must_not="made",
            ),
        ],
        "An index": [
            Case("none there", "dml-search index=images query=images/0_0.png"),
            Case(
                "a byte changed",
                "dml-search index=bad query=q.npy",
                bad_file("vectors-*.npy", flip, "index"),
            ),
            Case(
                "its index.json edited",
                "dml-search index=bad query=q.npy",
                bad_file(
                    "index.json",
                    lambda p: p.write_text(p.read_text().replace('"rows": 12', '"rows": 99')),
                    "index",
                ),
            ),
            Case(
                "checked, and a file is gone",
                "dml-index check=bad",
                bad_file("items-*.json", Path.unlink, "index"),
            ),
            Case(
                "a query of another length",
                "dml-search index=index query=q.npy",
                lambda: np.save("q.npy", np.ones((1, 7), np.float32)),
            ),
            Case(
                "an image, where no encoder is known", "dml-search index=index query=images/0_0.png"
            ),
            Case("too many results", "dml-search index=index query=q.npy k=0"),
            Case("nothing asked", "dml-search index=index"),
            Case("an unknown kind", "dml-index rebuild=index index=hsnw"),
            Case(
                "a port that is taken",
                "dml-search index=seen serve=true port=8765",
                within=port_taken,
            ),
        ],
        "Evidence": [
            Case(
                "a run of no experiment",
                "dml-report add=run root=checkout",
                lambda: Path("checkout").mkdir(),
            ),
            Case("no run", "dml-report add=images root=checkout"),
            Case("not yes or no", "dml-report check=maybe"),
            Case("a page of no run", "dml-report run=images"),
            Case("a page of no sweep", "dml-report sweep=images"),
        ],
        "Machine": [
            training("a folder that cannot be written", "run_dir=closed/out", within=as_nobody),
            training("a file where a folder is wanted", "run_dir=images/labels.csv/out"),
            training("a full disk", "run_dir=out", within=lambda: full_disk(20_000)),
            Case(
                "a full disk, for an index",
                "dml-index embeddings=big.npz out=made",
                saved("big.npz", embeddings=np.ones((4000, 8), np.float32), labels=np.arange(4000)),
                within=lambda: full_disk(20_000),
                must_not="made/index.json",
            ),
            training(
                "a loss that is no number",
                "run_dir=out optimizer.lr=1e30 optimizer.head_lr=1e30 trainer.max_epochs=4",
            ),
            training("a GPU that is not there", "run_dir=out trainer.accelerator=mps"),
        ],
    }


def broken_image_gone() -> Prepare:
    """broken/: the images without one."""

    def prepare() -> None:
        folder = copied("images", "broken")
        rows = (folder / "labels.csv").read_text().splitlines()
        (folder / "labels.csv").write_text("\n".join(rows[:-1]) + "\n")

    return prepare


def config_text() -> str:
    """config.yaml of the run."""
    from omegaconf import OmegaConf

    content = record.read_json(Path("run") / record.FILE)["config"]
    content["run_dir"] = "stopped"
    return OmegaConf.to_yaml(OmegaConf.create(content))


# ---------------------------------------------------------------- trying


def make() -> None:
    """What the lines share: images/, run/, encoder/, index/, seen/."""
    made_runs.images(Path("images"))
    made_runs.finished(Path("run"), Path("images"))
    tiny_bundle(Path("encoder"), dim=8)
    saved("v.npz", embeddings=VECTORS, labels=np.arange(12) % 3)()
    np.save("q.npy", VECTORS[:1])
    assert index_command.run(["embeddings=v.npz", "out=index"]) == 0
    assert index_command.run(["encoder=encoder", "images=images", "out=seen"]) == 0


def tried(section: str, case: Case, place: Path) -> Said:
    """Run a line.  Raises AssertionError: it did not fail as it should."""
    for name in ("out", "made", "canary", "empty"):
        shutil.rmtree(name, ignore_errors=True)
        with contextlib.suppress(OSError):
            Path(name).unlink()
    if case.prepare is not None:
        case.prepare()
    title, *words = case.typed.split(" ")
    log, heard = logging.getLogger("dml"), io.StringIO()
    handler = logging.StreamHandler(heard)
    others = list(log.handlers)
    for other in others:
        log.removeHandler(other)
    log.addHandler(handler)
    log.setLevel(logging.ERROR)
    try:
        with case.within(), contextlib.redirect_stdout(io.StringIO()) as printed:
            code = cli.exit_code(COMMANDS[title], [*case.words, *words])
    finally:
        for each in list(log.handlers):
            log.removeHandler(each)
            each.close()
        for other in others:
            log.addHandler(other)
        log.setLevel(logging.INFO)
    message = heard.getvalue().strip() or printed.getvalue().strip()
    line = f"{case.what}: {case.typed}\n{message}"
    assert code in (1, 2), f"exit code {code}: {line}"
    assert message, f"not a word: {line}"
    assert "not foreseen" not in message, line
    assert "Traceback" not in message, line
    assert not Path("canary").exists(), f"CODE RAN: {line}"
    assert not Path(case.must_not).exists(), f"{case.must_not} was written: {line}"
    return Said(section, case.what, case.shown or case.typed, code, plain(message, place))


def plain(message: str, place: Path) -> str:
    """The first lines, without the places of this machine."""
    for path in (f"{place.resolve()}/", f"{place}/"):
        message = message.replace(path, "")
    message = message.replace(str(place.resolve()), ".").replace(str(ROOT), "<checkout>")
    for changing, shown in CHANGING.items():
        message = re.sub(changing, shown, message)
    lines = [line.rstrip() for line in message.splitlines() if line.strip()]
    shown = [line if len(line) <= WIDTH else f"{line[:WIDTH]} ..." for line in lines[:LINES]]
    return "\n".join(shown + (["..."] if len(lines) > LINES else []))


def all_said(only: str | None = None) -> tuple[list[Said], list[str]]:
    """Every line of the page, and what went wrong."""
    found, wrong, before = [], [], Path.cwd()
    with tempfile.TemporaryDirectory(prefix="dml_bad_input_") as name:
        place = Path(name)
        place.chmod(0o755)
        os.chdir(place)
        try:
            make()
            for section, lines in cases().items():
                for case in lines:
                    if only is not None and only not in f"{section} {case.what} {case.typed}":
                        continue
                    print(f"{section}: {case.what}", file=sys.stderr)
                    try:
                        found.append(tried(section, case, place))
                    except AssertionError as error:
                        wrong.append(str(error))
        finally:
            os.chdir(before)
    return found, wrong


# ---------------------------------------------------------------- the page


def page(said: list[Said]) -> str:
    """docs/bad_input.md."""
    lines = [
        "# Bad input",
        "",
        "Generated by `python docs/bad_input.py`; do not edit.",
        "",
        f"{len(said)} bad inputs, given to the real commands: what was tried, the exit code (2: the command",
        "line or what it names cannot work; 1: what was begun failed), and what was said, to the first",
        f"{LINES} lines. The page is not made if a command shows a traceback, if a payload's file appears,",
        "or if half an output is left. Files are made small for it: `images` has a labels.csv, `run` is a",
        "finished run on them, `encoder` a bundle, `index` an index; `bad`, `broken` and `stopped` are",
        "copies with the fault that is named.",
    ]
    for section in dict.fromkeys(one.section for one in said):
        lines += ["", f"## {section}", "", "| tried | | exit | said |", "|---|---|---|---|"]
        for one in said:
            if one.section == section:
                told = "<br>".join(map(cell, one.message.splitlines()))
                lines.append(f"| {one.what} | `{barred(one.command)}` | {one.code} | {told} |")
    return "\n".join(lines) + "\n"


def barred(text: str) -> str:
    """Text with the bars escaped that would end a cell."""
    return text.replace("|", "\\|")


def cell(line: str) -> str:
    """A line of a message as code, its indentation kept by what does not break."""
    text = line.strip().replace("`", "'")
    return f"`{barred(text)}`"


def main(words: list[str]) -> int:
    """Write the page, or compare it with what is there."""
    only = next((word.removeprefix("only=") for word in words if word.startswith("only=")), None)
    if words not in ([], ["check=true"]) and only is None:
        print(__doc__)
        return 2
    torch.set_num_threads(1)
    said, wrong = all_said(only)
    for line in wrong:
        print(f"WRONG  {line}\n")
    if only is not None:
        for one in said:
            print(f"{one.command}  ->  {one.code}\n{one.message}\n")
        return int(bool(wrong))
    if wrong:
        print("The page was not written.")
        return 1
    text = page(said)
    if words == ["check=true"]:
        there = PAGE.read_text() if PAGE.is_file() else ""
        stale = sorted(set(text.splitlines()) ^ set(there.splitlines()))
        for line in stale:
            print(f"stale: {line}")
        return int(text != there)
    PAGE.write_text(text)
    print(f"{PAGE.relative_to(ROOT)}: {len(said)} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
