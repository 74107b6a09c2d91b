"""`dml-eval`: what it evaluates, compares, saves and refuses.

On scikit-learn's digits with encoders of seconds; numbers are held to the runs' records and to `evaluate`.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import stats

from dml import cli, embedding_files, eval_command, eval_request, measure, record, run
from dml.embedding_files import Embedded
from dml.errors import ConfigurationError, RunError
from dml.evaluation import evaluate
from dml.evaluation.scores import SIMILARITIES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory) -> list[Path]:
    """Two runs of a few steps that differ in their seed, in directories named as a sweep names them."""
    cli.set_up_log()
    folder = tmp_path_factory.mktemp("sweep")
    directories = [folder / f"loss=proxy_nca,seed={seed}" for seed in (0, 1)]
    for seed, directory in enumerate(directories):
        words = [
            "data=digits",
            f"data.root={cache}",
            f"run_dir='{directory}'",
            f"seed={seed}",
            "loss=proxy_nca",
            "sampler.batch_size=140",
            "trainer.max_epochs=1",
            "trainer.accelerator=cpu",
            "loader.num_workers=0",
            "loader.eval_batch_size=500",
            "backbone.kwargs.channels=[8,8,8,8]",
            "backbone.image_size=32",
            "backbone.resize=32",
        ]
        run.train(*cli.checked(words))
    return directories


def listed(directories: list[Path]) -> str:
    return "[" + ",".join(f"'{directory}'" for directory in directories) + "]"


def written(path: Path) -> dict:
    return json.loads(path.read_text())


def problems(*words: str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        eval_command.run(list(words))
    return {problem.where: problem.what for problem in caught.value.problems}


def vectors(rng: np.random.Generator, n: int = 24, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(n, d)).astype(np.float32), np.arange(n) % 4


def test_a_run_and_what_it_saves(runs, tmp_path):
    """Saved embeddings evaluate to the same numbers; per-query values average to the metrics."""
    saved, table = tmp_path / "saved.npz", tmp_path / "queries.npz"
    classes = tmp_path / "classes.csv"
    words = [f"embeddings={saved}", f"per_query={table}", f"per_class={classes}", f"out={tmp_path}"]
    assert eval_command.run([f"run={runs[0]}", *words]) == 0
    found = written(tmp_path / "evaluation_digits_test.json")
    assert found["metrics"] == record.read(runs[0])["metrics"]["test"]
    assert found["data"]["fingerprint"] == record.read(runs[0])["data"]["fingerprint"]
    assert {"command", "code", "versions", "preprocess", "protocol", "split"} <= found.keys()

    eval_command.run([f"embeddings_file={saved}"])
    again = written(tmp_path / "evaluation_saved.json")
    assert again["metrics"] == {n: found["metrics"][n] for n in again["metrics"]}
    assert again["images"] == found["images"] == len(embedding_files.load(saved).paths)
    with np.load(table) as queries:
        assert queries["recall@1"].mean() == pytest.approx(found["metrics"]["recall@1"])
    with classes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"digit7", "digit8", "digit9"}
    eval_command.run([f"embeddings_file={saved}", "evaluation.average=macro"])
    macro = written(tmp_path / "evaluation_saved.json")["metrics"]["recall@1"]
    assert macro == pytest.approx(np.mean([float(row["recall@1"]) for row in rows]))
    assert macro != found["metrics"]["recall@1"]  # classes differ in size


def test_several_runs(runs, tmp_path):
    """Separated: mean and t-interval of the runs' own numbers. Concatenated: written out here."""
    parts = []
    for number, directory in enumerate(runs):
        words = [f"embeddings={tmp_path / str(number)}.npz", f"out={tmp_path}"]
        eval_command.run([f"run={directory}", *words])
        parts.append(embedding_files.load(tmp_path / f"{number}.npz"))
    eval_command.run([f"runs={listed(runs)}", f"out={tmp_path}"])
    found = written(tmp_path / "evaluation_digits_test.json")

    own = [record.read(directory)["metrics"]["test"]["map@r"] for directory in runs]
    low, high = stats.t.interval(0.95, 1, np.mean(own), stats.sem(own))
    separated = found["separated"]["map@r"]
    assert separated["n"] == 2
    assert separated["mean"] == pytest.approx(np.mean(own))
    assert (separated["low"], separated["high"]) == pytest.approx((low, high))

    units = [
        part.embeddings / np.linalg.norm(part.embeddings, axis=1, keepdims=True) for part in parts
    ]
    together = evaluate(np.hstack(units), parts[0].labels, metrics=("recall@1", "map@r"))
    for name, value in together.items():
        assert found["metrics"][name] == pytest.approx(value, abs=1e-6)
    assert found["dim"] == 2 * parts[0].embeddings.shape[1]
    # What ties it to its runs where it is kept as evidence.
    assert found["records"] == {str(d): record.read(d)["sha256"] for d in runs}
    assert record.seal_problem(found) is None


def test_unlike_runs_are_named(runs, tmp_path, caplog):
    """A mean over different methods would pass for a result over seeds."""
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    changed = record.read(other)
    changed["config"]["loss"]["scale"] = 1.5
    record.write(changed, other)
    eval_command.run([f"runs={listed([runs[0], other])}", f"out={tmp_path}"])
    assert "differ in loss.scale:" in caplog.text


def test_compare(runs, tmp_path, monkeypatch, caplog):
    """The difference is that of the records; values for each query are kept and used again."""
    words = [f"compare={listed(runs)}", "resamples=500", f"out={tmp_path}"]
    eval_command.run(words)
    path = tmp_path / "comparison_digits_test.json"
    first = written(path)["differences"]
    metrics = [record.read(directory)["metrics"]["test"] for directory in runs]
    assert [row["metric"] for row in first] == ["recall@1", "map@r"]
    for row in first:
        name = row["metric"]
        expected = metrics[1][name] - metrics[0][name]
        for drawn in (row["queries"], row["classes"]):
            assert drawn["mean"] == pytest.approx(expected)
            assert drawn["low"] <= drawn["mean"] <= drawn["high"]

    with monkeypatch.context() as patch:
        patch.setattr(measure, "embed_images", None)  # fails if it is called
        eval_command.run(words)
    assert written(path)["differences"] == first
    assert caplog.text.count("same weights, images, code and versions") == 2


def test_kept_values_are_not_used_for_other_weights(runs, tmp_path):
    """A run that was trained on, or other metrics, must not be compared by its old values."""
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    words = [f"compare={listed([runs[0], copy])}", "resamples=500", f"out={tmp_path}"]
    eval_command.run(words)
    (same, _) = written(tmp_path / "comparison_digits_test.json")["differences"]
    assert same["queries"] == {"mean": 0, "low": 0, "high": 0, "p_value": 1}
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(runs[1] / "checkpoints", copy / "checkpoints")
    eval_command.run([*words, "evaluation.metrics=[map@r]"])
    (other,) = written(tmp_path / "comparison_digits_test.json")["differences"]
    assert other["metric"] == "map@r"
    assert other["queries"]["mean"] != 0


def test_runs_on_different_images_do_not_compare(runs, tmp_path):
    images = tmp_path / "images"
    for name in "abcdefghijkl":
        (images / name).mkdir(parents=True)
        for number in range(3):
            (images / name / f"{number}.png").write_bytes(b"never opened")
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    changed = record.read(other)
    changed["overrides"] = ["data=folder", f"data.root={images}"]
    record.write(changed, other)
    for source in ("compare", "runs"):
        found = problems(f"{source}={listed([runs[0], other])}")
        assert list(found) == [f"{source}={other}"]
        assert "test images (folder) are not those of" in found[f"{source}={other}"]


def test_a_model_off_the_shelf(cache, tmp_path):
    """Its pooled features, compared by cosine: held to timm itself."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    words = ["backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false"]
    words += [f"backbone.weights={tmp_path / 'weights.safetensors'}", "backbone.image_size=32"]
    words += ["backbone.resize=32", "head=none", "data=digits", f"data.root={cache}"]
    words += ["loader.num_workers=0", f"out={tmp_path}", f"embeddings={tmp_path / 'found.npz'}"]
    eval_command.run(words)
    found = written(tmp_path / "evaluation_digits_test.json")
    saved = embedding_files.load(tmp_path / "found.npz")
    assert found["backbone"]["name"] == "test_resnet"

    composed, _ = cli.compose.compose_all(["data=digits", f"data.root={cache}"])
    part = cli.check.check_data(composed).part("test")
    batches = measure.eval_loader(part, measure.Preprocess(**found["preprocess"]), 500, 0)
    with torch.no_grad():
        images = next(iter(batches)).images
        if images.dtype == torch.uint8:
            images = measure.Preprocess(**found["preprocess"]).normalize(images)
        features = torch.nn.functional.normalize(model(images))
    np.testing.assert_allclose(saved.embeddings[:500], features.numpy(), atol=1e-5)
    np.testing.assert_array_equal(saved.paths, part.relative_paths)
    metrics = evaluate(saved.embeddings, part.labels, metrics=("recall@1",))
    assert found["metrics"]["recall@1"] == metrics["recall@1"]


def test_embedding_files_of_every_kind(tmp_path):
    """The same vectors from .npz, .npy with .csv or .npy labels, and parquet give the same metrics."""
    embeddings, labels = vectors(np.random.default_rng(0))
    names = np.array([f"class {label}" for label in labels])
    np.savez(tmp_path / "a.npz", embeddings=embeddings, labels=names)
    np.save(tmp_path / "b.npy", embeddings)
    np.save(tmp_path / "labels.npy", labels + 2**60)
    lines = ["label,id", *(f"{name},item {n}" for n, name in enumerate(names))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    expected = evaluate(embeddings, labels)
    for words in (
        [f"embeddings_file={tmp_path / 'a.npz'}"],
        [f"embeddings_file={tmp_path / 'b.npy'}", f"labels={tmp_path / 'labels.npy'}"],
        [f"embeddings_file={tmp_path / 'b.npy'}", f"labels={tmp_path / 'labels.csv'}"],
    ):
        eval_command.run([*words, f"out={tmp_path / 'out'}"])
        (path,) = (tmp_path / "out").iterdir()
        assert written(path)["metrics"] == expected
        path.unlink()


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    embeddings, labels = vectors(np.random.default_rng(0))
    columns = {"embedding": list(embeddings), "label": [f"class {x}" for x in labels]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    eval_command.run([f"embeddings_file={tmp_path / 'a.parquet'}"])
    assert written(tmp_path / "evaluation_a.json")["metrics"] == evaluate(embeddings, labels)
    parquet.write_table(
        pyarrow.table({"embedding": [[1.0, 2.0], [1.0]], "label": [0, 0]}), tmp_path / "b.parquet"
    )
    (told,) = problems(f"embeddings_file={tmp_path / 'b.parquet'}").values()
    assert told == "its embeddings have different lengths: 1, 2."


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (told,) = problems(f"embeddings_file={tmp_path / 'a.parquet'}").values()
    assert "dml[parquet]" in told


def test_queries_and_gallery_of_a_file(tmp_path):
    """Roles and the similarity travel with a saved file; a word on the command line wins."""
    rng = np.random.default_rng(0)
    embeddings, labels = vectors(rng)
    query = np.arange(24) < 10
    embedded = Embedded(embeddings, labels, np.arange(24), query, similarity="euclidean")
    embedding_files.save(embedded, tmp_path / "a.npz")
    two_sets = (embeddings[query], labels[query], embeddings[~query], labels[~query])
    for words, similarity in (([], "euclidean"), (["similarity=dot"], "dot")):
        eval_command.run([f"embeddings_file={tmp_path / 'a.npz'}", *words])
        found = written(tmp_path / "evaluation_a.json")
        assert found["metrics"] == evaluate(*two_sets, similarity=similarity)
        assert (found["queries"], found["gallery"]) == (10, 14)
    assert embedding_files.SIMILARITIES == SIMILARITIES


GOOD = np.ones((4, 2), np.float32)
BAD_FILES = {
    "no labels": ({"embeddings": GOOD}, "lacks labels. It has embeddings."),
    "nothing": ({}, "lacks embeddings and labels. It has none."),
    "flat": ({"embeddings": GOOD[0], "labels": [0, 0]}, "embeddings have shape [2]; expected"),
    "short": ({"embeddings": GOOD, "labels": [0, 0]}, "labels have shape [2] for 4 rows of"),
    "nan": ({"embeddings": [[0, np.nan], [1, 1]], "labels": [0, 0]}, "NaN or infinity in rows 0."),
    "huge": ({"embeddings": [[0, 1], [1e99, 1]], "labels": [0, 0]}, "NaN or infinity in rows 1."),
    "float labels": ({"embeddings": GOOD, "labels": [0.5] * 4}, "labels are float64; expected"),
    "text": ({"embeddings": [["a"]], "labels": [0]}, "embeddings are <U1, not real numbers."),
    "ids": ({"embeddings": GOOD, "labels": [0] * 4, "ids": [1, 1, 2, 3]}, "ids must all be diff"),
    "no gallery": ({"embeddings": GOOD, "labels": [0] * 4, "is_query": [True] * 4}, "needs both"),
    "roles": ({"embeddings": GOOD, "labels": [0] * 4, "is_query": [0, 1, 0, 1]}, "expected true"),
    "similarity": ({"embeddings": GOOD, "labels": [0] * 4, "similarity": "l1"}, "is 'l1', none of"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_wrong_files_are_refused(kind, tmp_path):
    arrays, told = BAD_FILES[kind]
    np.savez(tmp_path / "a.npz", **arrays)
    assert told in problems(f"embeddings_file={tmp_path / 'a.npz'}").popitem()[1]


def test_nothing_pickled_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=GOOD, labels=np.array([{}] * 4, dtype=object))
    (told,) = problems(f"embeddings_file={tmp_path / 'a.npz'}").values()
    assert "cannot be read" in told
    assert "it holds Python objects, which could run code" in told
    (tmp_path / "b.npz").write_bytes(b"no archive")
    (told,) = problems(f"embeddings_file={tmp_path / 'b.npz'}").values()
    assert "cannot be read" in told


def test_embeddings_without_a_positive_fail_in_the_run(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=GOOD, labels=np.arange(4))
    with pytest.raises(RunError, match="none of the 4 queries has a positive"):
        eval_command.run([f"embeddings_file={tmp_path / 'a.npz'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


COMMANDS = {
    # words -> where, and the beginning of what is told
    "split=test": {"dml-eval": "what is to be evaluated: which run?"},
    "bakbone=resnet50": {
        "bakbone=resnet50": "is no option of dml-eval. Did you mean backbone?",
        "dml-eval": "what is to be evaluated",
    },
    "run=nowhere -q": {"-q": "is no flag.", "run=nowhere": "holds no record.json"},
    "run=a backbone=resnet50": {"dml-eval": "run=... and backbone=... are different things"},
    "compare=[a]": {"compare=[a]": "takes two directories", "compare=a": "holds no record.json"},
    "embeddings_file=a.npz data=digits": {
        "data=digits": "does not go with embeddings_file=... Options: labels, similarity",
        "embeddings_file=a.npz": "is no file.",
    },
    "embeddings_file=a.txt": {"embeddings_file=a.txt": "must end in .npz, .npy, .parquet."},
    "embeddings_file=b.npy": {"embeddings_file=b.npy": "is no file."},
    "run=a similarity=l1": {
        "similarity=l1": "does not go with run=...",
        "run=a": "holds no record.json",
    },
    "run=a embeddings=x.npy per_query=no/x.npz evaluation.metrics=[]": {
        "run=a": "holds no record.json",
        "embeddings=x.npy": "is a NumPy archive; end its name in .npz.",
        "per_query=no/x.npz": "there is no directory no.",
        "evaluation.metrics=[]": "must name a metric",
    },
    "compare=[a,b] resamples=5 evaluation.metrics=[recal@1] split=some": {
        "compare=a": "holds no record.json",
        "compare=b": "holds no record.json",
        "resamples=5": "must be at least 100.",
        "evaluation.metrics": "unknown metric 'recal@1'",
        "split=some": "must be one of train, val, test, all.",
    },
    "backbone=glyphs_cnn head=linear data=folder data.root=none": {
        "backbone=glyphs_cnn": "has random weights.",
        "head=linear": "has random weights here",
        "data.root=none": "",
    },
    "backbone=resnet50 backbone.pretrained=false backbone.weights=w data=folder data.root=none": {
        "backbone.weights=w": "is no file.",
        "data.root=none": "",
    },
}


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_command_lines(command, tmp_path, monkeypatch):
    """Everything that is wrong is told at once, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    found = problems(*command.split())
    assert found.keys() == COMMANDS[command].keys()
    for where, told in COMMANDS[command].items():
        assert found[where].startswith(told)
    assert not list(tmp_path.iterdir())


def test_metrics_without_queries_do_not_compare(runs):
    found = problems(f"compare={listed(runs)}", "evaluation.metrics=[recall@1,nmi]")
    assert found == {
        "evaluation.metrics": "nmi has no value for each query, and compare pairs queries."
    }


def test_training_needs_an_embedding_layer(cache):
    """head=none is for evaluation: without parameters it would train nothing but the trunk, unasked."""
    with pytest.raises(ConfigurationError, match="head=none  has no embedding layer to train"):
        cli.checked(["head=none", "data=digits", f"data.root={cache}"])


def test_help(capsys):
    assert (eval_command.run(["--help"]), eval_command.run([])) == (0, 2)
    shown = capsys.readouterr().out
    assert all(f"dml-eval {source}=" in shown for source in eval_request.SOURCES)


def test_a_wrong_command_line_imports_no_torch():
    """In a process of its own: the words, the data and an embeddings file are checked without it."""
    code = (
        "import sys; from dml import eval_command; from dml.errors import ConfigurationError\n"
        "for words in (['run=none'], ['embeddings_file=a.npz'], ['backbone=resnet50', 'split=x']):\n"
        "    try: eval_command.run(words)\n"
        "    except ConfigurationError: continue\n"
        "    raise SystemExit('accepted')\n"
        "print(sorted({'torch', 'timm', 'faiss', 'pytorch_lightning'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
