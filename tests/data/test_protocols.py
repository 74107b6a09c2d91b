"""Protocols: who trains, who validates, who is tested. The split by classes is in test_image_index.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dml import cli, eval_command, run
from dml.data.protocols import (
    completed_splits,
    fold_split,
    image_split,
    protocol_problems,
    training_splits,
)
from dml.data.sets import folder
from dml.errors import ConfigurationError

OPTIONS = {"val_fraction": 0.25, "seed": 3, "fold": None, "folds": 4}


def classes_of(splits, labels):
    return {split: sorted(set(labels[positions].tolist())) for split, positions in splits.items()}


@pytest.mark.parametrize(
    ("classes", "folds"),
    [
        # train and val as results of the Reality Check's code: first and last class of each range
        (100, [(0, 74, 75, 99), (25, 99, 0, 24), (50, 24, 25, 49), (75, 49, 50, 74)]),  # CUB
        (98, [(0, 73, 74, 97), (24, 97, 0, 23), (49, 24, 25, 48), (73, 48, 49, 72)]),  # Cars
    ],
)
def test_folds_of_the_reality_check(classes, folds):
    """Contiguous, wrapping round: train begins at fold/4 and validation fills the rest."""
    labels = np.repeat(np.arange(classes), 2)
    for fold, (train_first, train_last, val_first, val_last) in enumerate(folds):
        found = classes_of(fold_split(labels, fold, 4), labels)
        train = [(train_first + n) % classes for n in range(len(found["train"]))]
        assert train[-1] == train_last
        assert found["train"] == sorted(train)
        assert found["val"] == list(range(val_first, val_last + 1))


@given(
    sizes=st.lists(st.integers(1, 4), min_size=4, max_size=40),
    folds=st.integers(2, 8),
    offset=st.integers(0, 1000),
)
def test_folds_validate_each_class_once(sizes, folds, offset):
    """No class validates twice; each does once if the classes divide evenly, else folds-1 may not."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)) + offset
    validated: list[int] = []
    for fold in range(folds):
        splits = fold_split(labels, fold, folds)
        assert sorted(np.concatenate(list(splits.values()))) == list(range(len(labels)))
        found = classes_of(splits, labels)
        assert not set(found["train"]) & set(found["val"])
        assert len(found["val"]) == len(sizes) // folds
        validated += found["val"]
    assert len(set(validated)) == len(validated)
    assert len(sizes) - len(validated) < folds
    assert len(validated) == len(sizes) or len(sizes) % folds


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=20),
    seed=st.integers(0, 2**32 - 1),
    test_fraction=st.floats(0.05, 0.95),
    val_fraction=st.just(0.0) | st.floats(0.05, 0.95),
)
def test_closed_set_deals_the_images_of_each_class(sizes, seed, test_fraction, val_fraction):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    options = {"seed": seed, "test_fraction": test_fraction, "val_fraction": val_fraction}
    splits = completed_splits(None, labels, protocol="closed_set", **options)
    assert set(splits) == ({"train", "val", "test"} if val_fraction else {"train", "test"})
    assert sorted(np.concatenate(list(splits.values()))) == list(range(len(labels)))
    found = classes_of(splits, labels)
    assert found["train"] == list(range(len(sizes))), "every class trains"
    assert found["test"] == [label for label, size in enumerate(sizes) if size > 1]
    for positions in splits.values():
        assert positions.dtype == np.int64
        assert (np.diff(positions) > 0).all()
    again = completed_splits(None, labels, protocol="closed_set", **options)
    assert all((splits[split] == again[split]).all() for split in splits)


def test_a_closed_split_never_changes():
    """Numbers depend on it: this example must stay as it is."""
    splits = image_split(np.repeat([0, 1], 6), {"train": 0.5, "test": 0.5}, seed=0)
    assert {s: p.tolist() for s, p in splits.items()} == {
        "train": [2, 3, 5, 7, 8, 11],
        "test": [0, 1, 4, 6, 9, 10],
    }


@pytest.mark.parametrize(
    ("protocol", "fold", "expected"),
    [
        ("standard", None, {"train": 15, "val": 5}),
        ("standard_full", None, {"train": 20}),
        ("kfold", 1, {"train": 15, "val": 5}),
    ],
)
def test_training_images_are_divided_and_no_other(protocol, fold, expected):
    labels = np.repeat(np.arange(40), 3)
    train = np.flatnonzero(labels < 20)
    splits = training_splits(train, labels, protocol=protocol, **OPTIONS | {"fold": fold})
    found = classes_of(splits, labels)
    assert {split: len(classes) for split, classes in found.items()} == expected
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), train)


@pytest.mark.parametrize(
    ("options", "where", "message"),
    [
        (
            ("half", 0.1, None, 4),
            "data.protocol=half",
            "standard, standard_full, kfold, closed_set",
        ),
        (("standard", 1.0, None, 4), "data.val_fraction=1", "must lie in [0, 1)"),
        (("kfold", 0.1, None, 4), "data.fold", "-m data.fold=0,1,2,3 for all of them"),
        (("kfold", 0.1, 4, 4), "data.fold=4", "must lie in [0, 3]"),
        (("kfold", 0.1, 0, 1), "data.folds=1", "must be at least 2"),
        (("standard", 0.1, 0, 4), "data.fold=0", "has no folds. Add data.protocol=kfold"),
    ],
)
def test_options_out_of_range(options, where, message):
    (problem,) = protocol_problems(*options)
    assert problem.where == where
    assert message in problem.what
    labels = np.arange(8)
    protocol, val_fraction, fold, folds = options
    rest = {"val_fraction": val_fraction, "fold": fold, "folds": folds, "seed": 0}
    with pytest.raises(ConfigurationError):
        training_splits(labels, labels, protocol=protocol, **rest)


def test_folds_too_small_to_validate():
    """Else the weights would be chosen by nobody, silently."""
    rest = {"val_fraction": 0.1, "fold": 0, "seed": 0}
    with pytest.raises(ConfigurationError, match=r"data\.folds=6(?s:.*)Choose 5 or fewer"):
        training_splits(np.arange(10), np.arange(10), protocol="kfold", folds=6, **rest)


@pytest.fixture
def images(tmp_path):
    """Twelve classes of eight pictures, a colour each."""
    rng = np.random.default_rng(0)
    for label in range(12):
        (tmp_path / "own" / f"class{label:02}").mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for number in range(8):
            pixels = np.clip(colour + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            path = tmp_path / "own" / f"class{label:02}" / f"{number}.png"
            Image.fromarray(pixels).save(path)
    return tmp_path / "own"


def test_kfold_of_own_images_leaves_the_test_classes_alone(images):
    standard = folder.load(root=str(images))
    seen = [
        folder.load(root=str(images), protocol="kfold", fold=fold, folds=3) for fold in range(3)
    ]
    for index in seen:
        assert index.splits["test"].tolist() == standard.splits["test"].tolist()
    validated = np.concatenate([index.classes_of("val") for index in seen])
    both = np.union1d(standard.classes_of("train"), standard.classes_of("val"))
    np.testing.assert_array_equal(np.sort(validated), both)


@pytest.mark.parametrize("protocol", ["kfold", "standard_full"])
def test_own_validation_images_are_not_silently_left_out(
    protocol, tmp_path, make_image, problems_of
):
    for split, classes in (("train", "abcd"), ("val", "ef"), ("test", "gh")):
        for name in classes:
            make_image(tmp_path / split / name / "1.png")
    fold = 0 if protocol == "kfold" else None
    found = problems_of(folder.load, root=str(tmp_path), protocol=protocol, fold=fold)
    assert [where for where, _ in found] == [f"data.protocol={protocol}"]
    assert "data.protocol=standard." in found[0][1]


def test_given_splits_may_share_classes_in_a_closed_set_alone(tmp_path, make_image, problems_of):
    for split in ("train", "test"):
        for name in "ab":
            for number in range(4):
                make_image(tmp_path / split / name / f"{number}.png")
    ((_, what),) = problems_of(folder.load, root=str(tmp_path), val_fraction=0)
    assert what.startswith("2 classes are in both train and test: a, b.")
    index = folder.load(root=str(tmp_path), val_fraction=0.5, protocol="closed_set")
    assert {split: len(index.part(split)) for split in index.splits} == {
        "train": 4,
        "val": 4,
        "test": 8,
    }
    assert not index.class_disjoint
    assert all(index.part(split).num_classes == 2 for split in index.splits)


RUN = (
    "data=folder",
    "loss=proxy_nca",
    "backbone=timm",
    "backbone.name=test_resnet",
    "backbone.pretrained=false",
    "backbone.image_size=32",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "loader.num_workers=0",
    "sampler.batch_size=12",
)


def test_a_closed_set_is_marked(images, tmp_path, capsys):
    """In the record, in the printed table, and when the run is evaluated again."""
    words = [*RUN, f"data.root={images}", f"run_dir={tmp_path / 'run'}", "data.protocol=closed_set"]
    with pytest.raises(ConfigurationError, match=r"Raise data\.val_fraction, or add images"):
        cli.checked(words)  # a tenth of four images
    words.append("data.val_fraction=0.5")
    found = run.train(*cli.checked(words))
    assert found["protocol"]["name"] == "closed_set"
    assert found["protocol"]["class_disjoint"] is False
    assert found["data"]["splits"]["test"] == {"images": 48, "classes": 12}
    assert found["metrics"]["val"] is not None
    assert "48 images of 12 test classes, not all of them unseen" in capsys.readouterr().out
    assert eval_command.run([f"run={tmp_path / 'run'}"]) == 0
    assert "closed set" in capsys.readouterr().out


def test_without_validation_the_last_epoch_counts(images, tmp_path):
    words = [*RUN, f"data.root={images}", f"run_dir={tmp_path / 'run'}"]
    found = run.train(*cli.checked([*words, "data.protocol=standard_full"]))
    assert found["checkpoint"]["rule"] == "last epoch"
    assert found["metrics"]["val"] is None
    assert found["protocol"]["class_disjoint"] is True


def test_problems_reach_the_command_line(images):
    with pytest.raises(ConfigurationError) as caught:
        cli.checked([*RUN, f"data.root={images}", "data.fold=2", "data.folds=1"])
    told = {problem.where: problem.what for problem in caught.value.problems}
    assert set(told) == {"data.fold=2", "data.folds=1"}
    words = [*RUN, f"data.root={images}", "data.protocol=standard_full", "selection.rule=best"]
    with pytest.raises(ConfigurationError, match=r"Add data\.protocol=standard, or"):
        cli.checked(words)
    with pytest.raises(ConfigurationError, match="must be one of standard, standard_full, kfold"):
        cli.checked(["data=cub200", f"data.root={images}", "data.protocol=closed_set"])


def test_a_test_split_in_which_nothing_can_be_found(tmp_path, make_image):
    for label in range(8):
        make_image(tmp_path / f"class{label}" / "1.png")
    with pytest.raises(ConfigurationError, match="no image has another to be found by"):
        cli.checked([*RUN, f"data.root={tmp_path}", "sampler.batch_size=2"])
