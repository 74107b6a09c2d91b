"""Nothing that is read makes code run: not a bundle, a record, a checkpoint, weights or a configuration.

What the user types is the user's own word; what a file says is the word of whoever wrote it.  Each payload
below would leave a file behind, and the tests look for it.
"""

import ast
import contextlib
import copy
import json
import pickle
import shutil
import subprocess
import time
from pathlib import Path

import made_runs
import numpy as np
import pytest
import torch
from bundles import tiny_bundle
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

import dml
from dml import build, cli, embedding_files, eval_command, measure, record
from dml.config import compose, saved
from dml.data.files import missing_files
from dml.encoder import Trunk
from dml.errors import ConfigurationError, RunError
from dml.export import command as export_command
from dml.index import files as index_files
from dml.report import command as report_command
from dml.report import records

PACKAGE = Path(cli.__file__).parent
ROOT = PACKAGE.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Images, and a finished run on them."""
    folder = tmp_path_factory.mktemp("security")
    images = made_runs.images(folder / "images")
    return images, made_runs.finished(folder / "run", images)


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A run to be changed."""
    return Path(shutil.copytree(made[1], tmp_path / "run"))


# -- what the source calls


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Dotted name of what is called, and the call."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in found]


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


# Calls that make of bytes or text something that runs, and where they are allowed.
NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load"),
    *("pickle.loads", "marshal.loads", "shelve.open", "joblib.load", "yaml.load", "yaml.full_load"),
    *("yaml.unsafe_load", "torch.jit.load", "runpy.run_path", "tarfile.TarFile.extractall"),
    *("hydra.utils.call", "hydra.utils.get_class", "hydra.utils.get_method", "cloudpickle.loads"),
}
ALLOWED = {
    # dml/export/formats.py opens the graphs that it has written in the same process a second before.
    ("export/formats.py", "torch.jit.load"),
}


def unsafe_calls(source: str, file: str = "x.py") -> list[str]:
    """Calls that could run what they read."""
    found = []
    for name, call in calls(ast.parse(source)):
        last = name.rpartition(".")[2]
        bad = name in NEVER and (file, name) not in ALLOWED
        bad |= name == "torch.load" and keyword(call, "weights_only") != "True"
        bad |= name in ("np.load", "numpy.load") and not (
            keyword(call, "allow_pickle") in (None, "False") and len(call.args) < 3
        )
        bad |= last in ("extractall", "unpack_archive")
        bad |= last in ("Popen", "run", "check_output", "call") and keyword(call, "shell") not in (
            None,
            "False",
        )
        bad |= name == "instantiate" and (
            file != "build.py" or keyword(call, "_recursive_") != "False"
        )
        bad |= last == "load_from_checkpoint"
        resumed = keyword(call, "ckpt_path") is not None
        bad |= last == "fit" and resumed and keyword(call, "weights_only") is None
        bad |= last == "Unpickler" and file != "data/sets/cifar.py"
        if bad:
            found.append(f"{file}:{call.lineno} {name}")
    return found


def test_no_unsafe_call_in_the_package():
    """Of pickle, eval, unsafe YAML, unrestricted torch.load, a shell, and instantiate outside build.py."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    for file in files:
        where = file.relative_to(PACKAGE).as_posix()
        assert unsafe_calls(file.read_text(), where) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, None, True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "pickle.load(file)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "instantiate(node)",
        "tar.extractall(folder)",
        "trainer.fit(module, ckpt_path=path)",
        "pickle.Unpickler(file)",
    ],
)
def test_the_search_finds_each(source):
    """A search that finds nothing would pass, too."""
    assert unsafe_calls(source) != []


def test_what_is_unpickled_can_only_be_an_array():
    """CIFAR is published as pickles: four names may be referred to, none of which runs anything."""
    from dml.data.sets.cifar import ALLOWED as names

    assert {".".join(name) for name in names} == {
        *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
        *("numpy.ndarray", "numpy.dtype"),
    }


# -- a record's word

CANARY = "canary"


def payloads(canary: Path) -> dict[str, object]:
    """What each of these does when Hydra calls it: make the file `canary`."""
    line = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": {"_target_": "os.system", "command": f"touch {canary}"},
        "builtins.exec": {"_target_": "builtins.exec", "_args_": [line]},
        "builtins.eval": {"_target_": "builtins.eval", "_args_": [f"open({str(canary)!r}, 'w')"]},
        "subprocess.Popen": {"_target_": "subprocess.Popen", "args": ["touch", str(canary)]},
        "pathlib.Path.touch": {"_target_": "pathlib.Path.touch", "_args_": [str(canary)]},
        "our own import of subprocess": {
            "_target_": "dml.record.subprocess.run",
            "args": ["touch", str(canary)],
        },
        "partial": {"_target_": "os.system", "_partial_": True, "command": f"touch {canary}"},
        "not a word": {"_target_": ["os.system"], "command": f"touch {canary}"},
    }


PAYLOADS = sorted(payloads(Path()))


def plant(where: str, payload: object):
    """A change that puts a payload into a record's configuration."""

    def change(content) -> None:
        *path, last = where.split(".")
        node = content["config"]
        for part in path:
            node = node[part]
        if isinstance(node.get(last), dict) and isinstance(payload, dict):
            node[last] = node[last] | payload
        else:
            node[last] = payload

    return change


def test_the_payloads_do_what_they_threaten(tmp_path):
    """Otherwise a refusal proves nothing.  Newer Hydras refuse the best known of them by themselves."""
    done = set()
    for name in PAYLOADS:
        canary = tmp_path / name.replace(" ", "_")
        with contextlib.suppress(InstantiationException):
            started = instantiate(payloads(canary)[name], _convert_="all")
            if isinstance(started, subprocess.Popen):
                started.wait()
        if canary.exists():
            done.add(name)
    assert done >= {"pathlib.Path.touch"}


def commands(run: Path, out: Path) -> dict[str, tuple]:
    """Every command that reads a record and builds something of it."""
    return {
        "dml-eval run": (eval_command.run, [f"run={run}", f"out={out}"]),
        "dml-export": (export_command.run, [f"run={run}", f"out={out / 'bundle'}"]),
        "dml-report run": (report_command.run, [f"run={run}", f"out={out / 'page.html'}"]),
    }


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("where", ["backbone", "head", "backbone.kwargs", "backbone.kwargs.block"])
def test_a_record_calls_nothing_foreign(run, tmp_path, name, where, caplog):
    """At any depth, by every command, with a seal that is right."""
    canary, out = tmp_path / CANARY, tmp_path / "out"
    out.mkdir()
    made_runs.resealed(run, plant(where, payloads(canary)[name]))
    for title, (command, words) in commands(run, out).items():
        caplog.clear()
        assert cli.exit_code(command, words) in (1, 2), title
        assert not canary.exists(), title
        assert "not foreseen" not in caplog.text
        assert "nothing of it was run" in caplog.text
        assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_record_calls_no_foreign_data_set(run, tmp_path, name, caplog):
    """The page opens the data of the record."""
    canary = tmp_path / CANARY
    made_runs.resealed(run, plant("data", payloads(canary)[name]))
    assert cli.exit_code(report_command.run, [f"run={run}"]) == 1
    assert not canary.exists()
    assert "nothing of it was run" in caplog.text


@pytest.mark.parametrize(
    "word",
    [
        "data._target_=os.system",
        "+data._args_=[x]",
        "data={_target_:os.system}",
        "++data.x._target_=os.system",
        "data.root='${oc.env:HOME}'",
        "data.root=${oc.env:HOME}",
        "evaluation.metrics=['${oc.env:HOME}']",
    ],
)
def test_a_word_of_a_record_is_not_taken_up_unseen(run, word, caplog):
    """dml-eval composes the words again that a run was started with."""
    made_runs.resealed(run, lambda content: content["overrides"].append(word))
    assert cli.exit_code(eval_command.run, [f"run={run}"]) in (1, 2)
    assert "a file's word is not enough" in caplog.text
    assert str(Path.home()) not in caplog.text.replace(str(run), "")


def test_what_the_user_types_is_the_users_word(made, run):
    """A class of one's own is called where the command line names it; a record's word alone is not enough."""
    target = "made_targets.load"
    words = [*made_runs.words(made[0]), f"data._target_={target}"]
    _, index = cli.checked(words)
    assert index.name == "own"
    made_runs.resealed(run, lambda c: c["overrides"].append(f"data._target_={target}"))
    with pytest.raises(RunError, match="repeat it on this command line"):
        eval_command.run([f"run={run}"])
    assert eval_command.run([f"run={run}", f"data._target_={target}"]) == 0


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("memory._target_=my.Memory", "the chosen memory builds nothing"),
        ("loss._target_=", "must name a class or function"),
        ("loss._target_=os system", "must name a class or function"),
        ("data._target_=no_such_package.load", "Is it spelt right"),
        ("data._target_=made_targets.lode", "Is it spelt right"),
    ],
)
def test_a_class_of_ones_own_that_is_not_there(made, word, said, caplog):
    words = [*made_runs.words(made[0]), word, "dry_run=true"]
    assert cli.exit_code(cli.train_command, words) == 2
    assert said in caplog.text


def test_no_experiment_is_a_word_too(made):
    """experiment=null is the default."""
    words = [*made_runs.words(made[0]), "experiment=null", "dry_run=true"]
    assert cli.exit_code(cli.train_command, words) == 0


def test_a_path_with_underscores_names_no_code():
    """`/data/_all_images_/x` is a path; only what Hydra would read as keys is not taken up."""
    assert saved.word_problem("data.root=/data/_all_images_/_target_") is None
    assert saved.word_problem("data.root={_target_:os.system}") is not None


def test_every_class_that_we_ship_passes(made, run):
    """What configs/ names is what a record may name."""
    for group in saved.BUILT:
        files = sorted((compose.config_dir() / group).glob("*.yaml"))
        targets = {OmegaConf.load(file).get("_target_") for file in files} - {None}
        assert targets == saved.shipped(group)
        composed, _ = compose.compose_all([f"{group}={files[0].stem}"])
        assert composed.config[group]._target_ in targets
    measure.run_encoder(run)


def test_nested_targets_are_data(tmp_path):
    """Also on the command line only a group's own target is called, not what stands within its options."""
    canary = tmp_path / CANARY
    composed, problems = compose.compose_all(
        [f"backbone.kwargs.x={{_target_:pathlib.Path.touch,_args_:['{canary}']}}"]
    )
    assert problems == []
    with pytest.raises(ConfigurationError, match="does not take these"):
        build.encoder(composed.config)
    assert not canary.exists()


def test_a_checkpoint_lies_in_its_run(made, run, tmp_path):
    """A record that points elsewhere would have another's file read as its own."""
    for name in ("../elsewhere.ckpt", str(made[1] / "checkpoints/last.ckpt"), "", None, "a\0b"):
        made_runs.resealed(run, lambda c, name=name: c["checkpoint"].update(file=name))
        with pytest.raises(RunError, match=r"outside of|checkpoint\.file is missing"):
            measure.run_encoder(run)


def test_a_commit_is_no_option_of_git(tmp_path):
    """`git merge-base --is-ancestor --x HEAD` would take a record's word for an option."""
    for commit in ("--help", "-a", "HEAD", "a b", ""):
        assert records.in_history(commit, ROOT) is False


# -- files with weights


class Touch:
    """Unpickling this makes the file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_the_pickle_does_what_it_threatens(tmp_path):
    pickle.loads(pickle.dumps(Touch(tmp_path / CANARY)))
    assert (tmp_path / CANARY).exists()


def test_a_pickled_checkpoint_does_not_run(run, tmp_path, caplog):
    torch.save({"state_dict": {}, "x": Touch(tmp_path / CANARY)}, run / "checkpoints/last.ckpt")
    out = tmp_path / "out"
    out.mkdir()
    for title, (command, words) in commands(run, out).items():
        assert cli.exit_code(command, words) == 1, title
        assert not (tmp_path / CANARY).exists(), title
    assert "does not hold the weights of this encoder" in caplog.text
    assert "not foreseen" not in caplog.text


@pytest.mark.parametrize("option", ["weights", "kwargs.checkpoint_path", "kwargs.pretrained_cfg"])
def test_a_pickled_weights_file_does_not_run(made, tmp_path, option, caplog):
    """timm's own ways to weights are closed: some of its versions unpickle what they are given."""
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": Touch(tmp_path / CANARY)}, file)
    words = [*made_runs.words(made[0], tmp_path / "run"), f"backbone.{option}={file}"]
    assert cli.exit_code(cli.train_command, words) == 2
    assert not (tmp_path / CANARY).exists()
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert f"backbone.{option}={file}" in caplog.text
    with pytest.raises(ConfigurationError, match=r"backbone\.weights=FILE alone"):
        Trunk("test_resnet", kwargs={"checkpoint_path": str(file)})


def test_pickled_embeddings_are_not_read(tmp_path, caplog):
    for name in ("a.npz", "a.npy"):
        array = np.array([Touch(tmp_path / CANARY)], dtype=object)
        with (tmp_path / name).open("wb") as file:
            if name.endswith("npz"):
                np.savez(file, embeddings=array, labels=array)
            else:
                np.save(file, array, allow_pickle=True)
        words = [f"embeddings_file={tmp_path / name}"]
        words += [f"labels={tmp_path / name}"] if name.endswith("npy") else []
        assert cli.exit_code(eval_command.run, words) == 2
        assert not (tmp_path / CANARY).exists()
    assert "cannot be read" in caplog.text


# -- config.yaml of a run that is to be resumed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!python/object/apply:os.system ['touch {canary}']", "not as dml-train writes it"),
        ("a: &a [x]\nb: [*a, *a]", "says things by reference"),
        ("[" * 100_000, "nests as ours never do"),
        ("- 1", "is no dictionary"),
        ("\x00", "not as dml-train writes it"),
        ("seed: ${oc.env:DML_SECRET}", "started with ${oc.env:DML_SECRET}"),
    ],
)
def test_a_foreign_config_yaml(made, tmp_path, text, said, caplog, monkeypatch):
    """It is compared with the command line and never obeyed; nothing of the environment is shown."""
    monkeypatch.setenv("DML_SECRET", "hunter2")
    directory = tmp_path / "run"
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "checkpoints/last.ckpt").write_bytes(b"")
    (directory / "config.yaml").write_text(text.replace("{canary}", str(tmp_path / CANARY)))
    words = [*made_runs.words(made[0], directory), "ckpt_path=last"]
    assert cli.exit_code(cli.train_command, words) == 2
    assert said in caplog.text
    assert "hunter2" not in caplog.text
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", ["../../tmp/x", "/tmp/x", "x"])
def test_an_experiment_from_elsewhere_is_not_read(tmp_path, name, caplog):
    """experiment=NAME is a file of configs/experiment and no path."""
    canary = tmp_path / CANARY
    file = tmp_path / "x.yaml"
    file.write_text(f"loss:\n  _target_: pathlib.Path.touch\n  _args_: ['{canary}']\n")
    relative = Path("../" * 12) / file.relative_to("/").with_suffix("")
    for value in (name, str(relative), str(file.with_suffix(""))):
        words = [f"experiment={value}", "dry_run=true"]
        assert cli.exit_code(cli.train_command, words) == 2
    assert not canary.exists()
    assert "experiment has no" in caplog.text


def test_a_record_is_read_however_it_is_broken(tmp_path):
    """Deep, endless or half characters: one kind of error."""
    for text in ("[" * 100_000, '{"a": NaN}', '{"sha256": "\\ud800"}', "\ufeff{}", '{"format": 2}'):
        (tmp_path / record.FILE).write_text(text, encoding="utf-8")
        with pytest.raises(RunError):
            record.read(tmp_path)


# -- what would write elsewhere, or take all memory


def test_a_record_decides_no_path(made):
    """experiments/records/<experiment>/seed<k>_fold<j>.json is made of a record's words."""
    good = record.read(made[1])
    assert records.shape_problems(good) == []
    for where, value, said in (
        ("config.data.fold", "../../../x", "config.data.fold '../../../x' is no number"),
        ("config.experiment", "../../x", "experiment '../../x' is no name"),
        ("config.data", "x", "config.data is missing"),
    ):
        content = copy.deepcopy(good)
        *path, last = where.split(".")
        node = content
        for part in path:
            node = node[part]
        node[last] = value
        assert any(said in problem for problem in records.shape_problems(content)), where


def test_an_archive_of_arrays_that_is_a_bomb(tmp_path, monkeypatch):
    """Zeros shrink a thousandfold."""
    monkeypatch.setattr(embedding_files, "SLACK", 1000)
    np.savez_compressed(
        tmp_path / "a.npz", embeddings=np.zeros((1000, 100)), labels=np.arange(1000)
    )
    with pytest.raises(ConfigurationError, match="it unpacks from"):
        embedding_files.load(tmp_path / "a.npz")


def test_a_network_that_outgrows_its_weights_is_not_built(tmp_path):
    """A million layers in encoder.json would take all memory and time before the weights do not fit."""
    path = tiny_bundle(tmp_path / "bundle", dim=8)
    for kwargs in ({"layers": [10**6, 1, 1, 1]}, {"channels": [10**5, 10**5, 8, 8]}):
        content = json.loads((path / "encoder.json").read_bytes())
        content["backbone"]["kwargs"] |= kwargs
        (path / "encoder.json").write_text(json.dumps(content))
        started = time.process_time()
        with pytest.raises(RunError, match="its network is larger than"):
            dml.load_encoder(path)
        assert time.process_time() - started < 10


@pytest.mark.parametrize("name", ["../vectors-x.npy", "/etc/passwd", "vectors-/../../x", "x.npy"])
def test_an_index_names_files_of_its_own_directory(tmp_path, name):
    """index.json is sealed with a checksum that anyone can make."""
    manifest = {
        **{"format": 1, "similarity": "cosine", "dim": 2, "rows": 1, "encoder": None},
        **{"removed": None, "calibration": None, "measured": None},
        "segments": [{"vectors": name, "items": "items-a.json", "root": None}],
        "search": {"kind": "flat", "file": None, "parameters": "", "refine": 1},
        "files": {key: {"bytes": 1, "sha256": "0" * 64} for key in (name, "items-a.json")},
    }
    content = manifest | {"checksum": index_files.digest_of(manifest)}
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="garbles the file name"):
        index_files.read_manifest(tmp_path)


def test_names_that_no_file_can_have(tmp_path):
    """A list may hold anything; such names are missing, as others are."""
    assert missing_files(tmp_path, ["x" * 300, "a\0b.png", "a\0b/c.png", "y" * 9999]) == [
        0,
        1,
        2,
        3,
    ]
