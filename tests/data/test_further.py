"""What holds for all further data sets: classes apart, the same index again, protocols, plain refusals."""

import importlib

import further_archives
import numpy as np
import pytest
from further_archives import SMALL

from dml.config.compose import config_dir

NAMES = sorted(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_class_and_leave_nothing_out(further, name):
    module, root = further(name)
    index = module.load(root=str(root))
    assert set(index.splits) == {"train", "val", "test"}
    classes = [set(index.classes_of(split).tolist()) for split in index.splits]
    assert sum(map(len, classes)) == len(set.union(*classes)) == len(index.class_names)
    positions = np.concatenate(list(index.splits.values()))
    assert sorted(positions.tolist()) == list(range(len(index.paths)))
    assert index.labels.dtype == np.int64
    for path in index.paths:
        assert (index.root / path).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_directory_itself_or_the_one_above_will_do(further, name):
    """`root` is what holds the data set's directory; people give that directory as well."""
    module, root = further(name)
    index = module.load(root=str(root))
    again = module.load(root=str(index.root if name in ("vehicleid", "omniglot") else root))
    assert again.fingerprint() == index.fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_the_protocol_divides_the_training_classes_alone(further, name):
    module, root = further(name)
    test = module.load(root=str(root)).part("test").relative_paths.tolist()
    for fold in (0, 1):
        index = module.load(root=str(root), protocol="kfold", fold=fold, folds=2)
        assert index.part("test").relative_paths.tolist() == test
        assert (
            len(index.classes_of("val"))
            == (len(index.classes_of("train")) + len(index.classes_of("val"))) // 2
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("root", "message"),
    [(None, "has no value"), ("{tmp}/nowhere", "there is no"), ("{tmp}", "holds no ")],
)
def test_data_that_are_not_there(tmp_path, problems_of, name, root, message):
    load = importlib.import_module(f"dml.data.sets.{name}").load
    ((where, what),) = problems_of(load, root=root and root.format(tmp=tmp_path))
    assert where.startswith("data.root")
    assert message in what
    assert f"dml-data prepare={name}" in what


@pytest.mark.parametrize("name", NAMES)
def test_published_counts_are_the_defaults_of_the_option_files(name):
    """The number of training classes that the option file names is the published one."""
    counts = importlib.import_module(f"dml.data.sets.{name}").COUNTS
    classes = counts["train"][1] if "train" in counts else (counts["all"][1] + 1) // 2
    text = (config_dir() / "data" / f"{name}.yaml").read_text()
    assert f"of the {classes:,} training classes" in text


def test_omniglot_at_its_published_counts(tmp_path):
    """32,460 links to one image."""
    from dml.data.sets import omniglot

    root = further_archives.omniglot(tmp_path, omniglot.COUNTS, linked=True)
    index = omniglot.load(root=str(root), protocol="standard_full")
    assert {s: (len(index.part(s)), index.part(s).num_classes) for s in index.splits} == {
        "train": (19_280, 964),
        "test": (13_180, 659),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "omniglot"])
def test_the_others_at_their_published_counts(tmp_path, monkeypatch, name):
    """Links to one image each, arrays of noise for CIFAR and MNIST: up to a minute of disk."""

    module = importlib.import_module(f"dml.data.sets.{name}")
    options = {} if name in ("cifar10", "cifar100", "mnist") else {"linked": True}
    root = further_archives.MAKERS[name](tmp_path, module.COUNTS, **options)
    if name == "flowers102":
        further_archives.expect_labels(monkeypatch, module, root)
    index = module.load(root=str(root), protocol="standard_full")
    found = {s: (len(index.part(s)), index.part(s).num_classes) for s in index.splits}
    if "all" in module.COUNTS:
        assert sum(images for images, _ in found.values()) == module.COUNTS["all"][0]
        assert sum(classes for _, classes in found.values()) == module.COUNTS["all"][1]
    else:
        test = "small" if name == "vehicleid" else "test"
        assert found == {"train": module.COUNTS["train"], "test": module.COUNTS[test]}
