"""`dml-eval ... post=[...] compress=true`: what it reports beside the plain numbers, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_run import train

from dml import embedding_files, eval_command
from dml.embedding_files import Embedded
from dml.errors import ConfigurationError, RunError
from dml.evaluation import evaluate


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """Test embeddings [60, 16] of ten classes, and training embeddings [300, 16]."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 6)
    test = random.normal(size=(10, 16))[labels] + 0.7 * random.normal(size=(60, 16))
    train = random.normal(size=(300, 16))
    paths = []
    for name, vectors, found in (("test", test, labels), ("train", train, np.arange(300) % 9)):
        embedded = Embedded(vectors.astype(np.float32), found, np.arange(len(found)))
        paths.append(embedding_files.save(embedded, tmp_path / f"{name}.npz"))
    return paths[0], paths[1]


def evaluated(path: Path, *words: str) -> dict:
    metrics = "evaluation.metrics=[recall@1,map@r,auc]"
    assert eval_command.run([f"embeddings_file={path}", metrics, *words]) == 0
    return json.loads((path.parent / f"evaluation_{path.stem}.json").read_text())


def problems(*words: str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        eval_command.run(list(words))
    return {problem.where: problem.what for problem in caught.value.problems}


def test_steps_are_reported_beside_the_plain_numbers(files):
    """In the order of the command line, with the options that were used."""
    test, train = files
    found = evaluated(
        test,
        f"train_embeddings={train}",
        "post=[pca_whiten,query_expansion]",
        "post.query_expansion.neighbours=2",
        "post.pca_whiten.dim=12",
    )
    loaded = embedding_files.load(test)
    plain = evaluate(loaded.embeddings, loaded.labels, metrics=("recall@1", "map@r", "auc"))
    assert found["metrics"] == pytest.approx(plain)
    assert list(found["post"]["steps"]) == ["pca_whiten", "query_expansion"]
    assert found["post"]["steps"]["query_expansion"]["neighbours"] == 2
    assert found["post"]["metrics"].keys() == plain.keys()
    assert found["post"]["metrics"] != found["metrics"]


@pytest.mark.parametrize("step", ["k_reciprocal", "diffusion"])
def test_a_re_ranking_has_metrics_of_rankings(files, step, capsys):
    found = evaluated(files[0], f"post=[{step}]")
    assert found["post"]["metrics"].keys() == {"recall@1", "map@r"}
    assert step in capsys.readouterr().out


def test_compression_writes_a_table_and_a_plot(files):
    test, train = files
    found = evaluated(test, f"train_embeddings={train}", "compress=true")
    assert found["compression"][0]["method"] == "float32"
    assert found["compression"][0]["recall_at_1"] == found["metrics"]["recall@1"]
    assert {path.name for path in test.parent.glob("compression*")} == {
        "compression_test_all.csv",
        "compression_test_all.png",
    }


def test_refusals(files):
    """All at once, before anything slow."""
    test, _ = files
    assert problems(
        f"embeddings_file={test}",
        "post=[k_reciprocal,flip,database_augmentation]",
        "post.k_reciprocal.weight=2",
        "train_embeddings=nowhere.npz",
    ) == {
        "post.k_reciprocal.weight=2": "must lie in [0, 1].",
        "post=[k_reciprocal,flip,database_augmentation]": (
            "flip changes images and cannot follow k_reciprocal. Swap them."
        ),
        "post=flip": "changes the images before the encoder, and an embeddings_file has none.",
        "post=database_augmentation": (
            "mixes each query into the gallery where they are one set, as in this data."
        ),
        "train_embeddings=nowhere.npz": "is no file.",
    }
    assert problems(f"embeddings_file={test}", "post=[pca]", "compress=true") == {
        "post=pca": "is fitted on training embeddings. Add train_embeddings=FILE, as embeddings_file.",
        "compress=true": "is fitted on training embeddings. Add train_embeddings=FILE, as embeddings_file.",
    }
    found = problems(f"embeddings_file={test}", "post=[diffuson]")["post=[diffuson]"]
    assert "Did you mean post=diffusion?" in found
    found = problems(f"embeddings_file={test}", "post=[truncate]", "similarity=euclidean")
    assert found == {
        "post=truncate": "compares by cosine, and these embeddings are compared by euclidean."
    }


def test_a_step_that_the_embeddings_do_not_allow(files):
    with pytest.raises(RunError, match="post=truncate: dim=64: the embeddings have 16 numbers"):
        evaluated(files[0], "post=[truncate]")


def test_views_and_training_images_of_a_run(cache, tmp_path):
    """Both splits are embedded again over the views; evaluating what pca was fitted on is refused."""
    train(cache, tmp_path / "run", "trainer.max_epochs=1")
    run = f"run={tmp_path / 'run'}"
    assert eval_command.run([run, "post=[flip,pca]", "post.pca.dim=4"]) == 0
    found = json.loads((tmp_path / "run" / "evaluation_digits_test.json").read_text())
    assert list(found["post"]["steps"]) == ["flip", "pca"]
    assert found["post"]["metrics"]["map@r"] != found["metrics"]["map@r"]
    assert problems(run, "post=[pca]", "split=train") == {
        "post=pca": "is fitted on the training images, and split=train evaluates them."
    }
