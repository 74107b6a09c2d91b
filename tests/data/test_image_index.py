"""Splits: whole classes, nothing lost, the same for ever."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dml.data.index import SPLITS, ImageIndex, shortened
from dml.data.protocols import class_disjoint_split, completed_splits, split_problems
from dml.errors import ConfigurationError

fractions = st.floats(0.01, 0.99)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=6, max_size=40),
    seed=st.integers(0, 2**32 - 1),
    test_fraction=fractions,
    val_fraction=st.just(0.0) | fractions,
)
def test_splits_are_disjoint_cover_all_and_leave_none_short(
    sizes, seed, test_fraction, val_fraction
):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    options = {"seed": seed, "test_fraction": test_fraction, "val_fraction": val_fraction}
    splits = completed_splits(None, labels, **options)
    assert set(splits) == ({"train", "val", "test"} if val_fraction else {"train", "test"})
    assert sorted(np.concatenate(list(splits.values()))) == list(range(len(labels)))
    classes = {split: set(labels[positions].tolist()) for split, positions in splits.items()}
    assert sum(len(c) for c in classes.values()) == len(sizes), "no class is in two splits"
    assert len(classes["test"]) >= 2
    assert len(classes["train"]) >= (
        2 if len(classes["train"] | classes.get("val", set())) > 3 else 1
    )
    for positions in splits.values():
        assert positions.dtype == np.int64
        assert (np.diff(positions) > 0).all()
    again = completed_splits(None, labels, **options)
    assert all((splits[split] == again[split]).all() for split in splits)


def test_a_split_never_changes():
    """Published numbers depend on it: this example must stay as it is."""
    splits = completed_splits(None, np.arange(12), seed=0, test_fraction=0.5, val_fraction=0.34)
    assert {split: positions.tolist() for split, positions in splits.items()} == {
        "train": [5, 7, 8, 11],
        "val": [2, 3],
        "test": [0, 1, 4, 6, 9, 10],
    }


def test_validation_leaves_the_test_classes_alone():
    labels = np.repeat(np.arange(40), 3)
    options = {"seed": 5, "test_fraction": 0.5}
    without = completed_splits(None, labels, val_fraction=0, **options)
    with_val = completed_splits(None, labels, val_fraction=0.2, **options)
    np.testing.assert_array_equal(without["test"], with_val["test"])
    both = np.sort(np.concatenate([with_val["train"], with_val["val"]]))
    np.testing.assert_array_equal(both, without["train"])


@pytest.mark.parametrize(("fraction", "classes"), [(0.5, 50), (0.25, 25), (0.001, 2), (0.999, 98)])
def test_fractions_count_classes(fraction, classes):
    shares = {"train": 1 - fraction, "test": fraction}
    labels = np.repeat(np.arange(100), np.arange(1, 101))  # images do not matter
    assert len(np.unique(labels[class_disjoint_split(labels, shares, 1)["test"]])) == classes


def test_given_splits_stay_and_validation_is_taken_from_train():
    labels = np.repeat(np.arange(20), 2)
    given_splits = {"train": np.arange(24), "test": np.arange(24, 40)}
    splits = completed_splits(given_splits, labels, seed=0, test_fraction=0.9, val_fraction=0.25)
    np.testing.assert_array_equal(splits["test"], np.arange(24, 40))
    assert len(np.unique(labels[splits["val"]])) == 3
    assert sorted([*splits["train"], *splits["val"]]) == list(range(24))
    own_val = {**given_splits, "train": np.arange(20), "val": np.arange(20, 24)}
    kept = completed_splits(own_val, labels, seed=0, test_fraction=0.5, val_fraction=0.25)
    assert all((kept[split] == own_val[split]).all() for split in SPLITS)


def test_shared_classes_are_refused():
    labels, names = np.array([0, 0, 1, 1, 2, 2]), ("a", "b", "c")
    splits = {"train": np.array([0, 2, 4]), "val": np.array([3]), "test": np.array([1, 5])}
    found = split_problems(splits, labels, names, "data.labels=x", own=True)
    assert [problem.what.splitlines()[0] for problem in found] == [
        "1 class is in both train and val: b.",
        "2 classes are in both train and test: a, c.",
        "the val split has 1 class, and needs at least 2.",
    ]
    with pytest.raises(ConfigurationError, match="2 classes are in test and in train or val: a, c"):
        ImageIndex("x", ".", np.array(["i"] * 6), labels, names, splits)


def test_part_renumbers_labels_and_keeps_positions():
    index = ImageIndex(
        "x",
        ".",
        np.array(list("abcdef")),
        np.array([0, 1, 2, 3, 3, 1]),
        ("p", "q", "r", "s"),
        {"train": np.array([0, 2]), "test": np.array([1, 3, 4, 5])},
    )
    part = index.part("test")
    assert part.labels.tolist() == [0, 1, 1, 0]
    assert part.class_names == ("q", "s")
    assert part.ids.tolist() == [1, 3, 4, 5]
    assert part.class_sizes().tolist() == [2, 2]
    assert len(index.part("val")) == 0


def test_fingerprint_depends_on_files_classes_and_splits():
    paths, labels = np.array(list("abcd")), np.array([0, 1, 2, 3])
    names = ("p", "q", "r", "s")
    train, test = np.array([0, 1]), np.array([2, 3])
    prints = {
        ImageIndex("x", ".", *case).fingerprint()
        for case in (
            (paths, labels, names, {"train": train, "test": test}),
            (paths, labels, names, {"train": test, "test": train}),
            (np.array(list("abce")), labels, names, {"train": train, "test": test}),
            (paths, labels, ("p", "q", "r", "t"), {"train": train, "test": test}),
        )
    }
    assert len(prints) == 4


def test_shortened():
    assert shortened(["a", "b"]) == "a, b"
    assert shortened(list("abcdefg"), 3) == "a, b, c and 4 more"
