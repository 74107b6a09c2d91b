"""data=inshop: queries against a gallery, from the list's ragged rows to the record."""

import json

import archives
import numpy as np
import pytest

from dml import cli, eval_command, run
from dml.data.sets import inshop
from dml.errors import RunError


@pytest.fixture
def counts(monkeypatch):
    """The module expects the small set's counts."""
    monkeypatch.setattr(inshop, "COUNTS", archives.SMALL["inshop"])


@pytest.fixture
def small(tmp_path, counts):
    """A few images in the published layout."""
    return archives.inshop(tmp_path / "data")


def test_official_counts(tmp_path_factory):
    """25,882 training images; 14,218 queries and 12,612 gallery images of the same 3,985 garments."""
    official = archives.OFFICIAL["inshop"]
    root = archives.inshop(tmp_path_factory.mktemp("inshop"), official, linked=True)
    index = inshop.load(root=str(root), protocol="standard_full")
    train, test = index.part("train"), index.part("test")
    assert (len(train), train.num_classes) == official["train"]
    assert train.is_query is None
    found = {
        role: (int(chosen.sum()), len(np.unique(test.labels[chosen])))
        for role, chosen in (("query", test.is_query), ("gallery", ~test.is_query))
    }
    assert found == {role: official[role] for role in found}
    assert test.num_classes == 3985, "one label map over queries and gallery"
    assert (test.labels.min(), test.labels.max()) == (0, 3984)
    assert len(index.labels) == 52712
    assert len(index.class_names) == 7982
    for part in (train, test):
        for row in (0, -1):
            item = part.class_names[part.labels[row]]
            assert f"/{item}/" in part.relative_paths[row]


def test_roles_are_those_of_the_list(small):
    index = inshop.load(root=str(small))
    assert index.class_disjoint
    for split in index.splits:
        part = index.part(split)
        letters = [path.rsplit("/", 1)[1].split("_")[1] for path in part.relative_paths]
        if split == "test":
            assert [letter == "q" for letter in letters] == part.is_query.tolist()
            assert set(letters) == {"q", "g"}
        else:
            assert set(letters) == {"t"}
            assert part.is_query is None


@pytest.mark.parametrize("lists", ["Eval", ""])
@pytest.mark.parametrize("images", ["Img/img", "img"])
def test_layouts(lists, images, tmp_path, counts):
    root = archives.inshop(tmp_path / "In-shop Clothes", lists=lists, images=images)
    for given in (root, tmp_path):
        index = inshop.load(root=str(given))
        assert all((index.root / path).is_file() for path in index.paths)


def test_small_and_large_images(tmp_path, counts, problems_of):
    """Results on the two sizes do not compare: the option decides, not what happens to be there."""
    root = archives.inshop(tmp_path, images="Img/img_highres")
    ((_, what),) = problems_of(inshop.load, root=str(root))
    assert what.startswith("holds Img/img_highres alone. Add data.highres=true")
    large = inshop.load(root=str(root), highres=True)
    archives.inshop(tmp_path, images="img")
    assert inshop.load(root=str(root)).paths[0].startswith("img/")
    assert inshop.load(root=str(root), highres=True).paths.tolist() == large.paths.tolist()


def test_fingerprint_knows_the_roles(small):
    before = inshop.load(root=str(small)).fingerprint()
    file = small / "Eval" / "list_eval_partition.txt"
    text = file.read_text()
    first_query = next(line for line in text.splitlines() if "query" in line)
    first_gallery = next(line for line in text.splitlines() if "gallery" in line)
    for line, role, other in (
        (first_query, "query", "gallery"),
        (first_gallery, "gallery", "query"),
    ):
        text = text.replace(line, line.replace(f" {role}", f" {other}"))
    file.write_text(text)
    assert inshop.load(root=str(small)).fingerprint() != before


def test_other_lists(small, problems_of):
    file = small / "Eval" / "list_eval_partition.txt"
    text = file.read_text()
    file.write_text(text.replace("66", "65", 1))
    ((_, what),) = problems_of(inshop.load, root=str(small))
    assert "is damaged or another list: unexpected is '65'" in what
    file.write_text(text.replace("query", "test", 1))
    ((_, what),) = problems_of(inshop.load, root=str(small))
    assert "query 12 images of 6 classes" in what


def test_what_is_missing(small, problems_of):
    image = next((small / "Img" / "img").rglob("*.jpg"))
    image.unlink()
    ((_, what),) = problems_of(inshop.load, root=str(small))
    assert "1 of 66 images are missing" in what
    assert image.name in what
    (small / "Img" / "img").rename(small / "aside")
    ((_, what),) = problems_of(inshop.load, root=str(small))
    assert "has the list and no images: there is no Img/img or img" in what
    (small / "Img" / "img.zip").write_bytes(b"")
    ((_, what),) = problems_of(inshop.load, root=str(small))
    assert what.startswith("holds Img/img.zip, not unpacked.")


RUN = (
    "data=inshop",
    "loss=proxy_nca",
    "backbone=timm",
    "backbone.name=test_resnet",
    "backbone.pretrained=false",
    "backbone.image_size=32",
    "sampler.batch_size=8",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "loader.num_workers=0",
)


def test_a_run_searches_the_gallery_for_the_queries(small, tmp_path, capsys):
    """The record and the printed table say so, and a query's own image is not what it finds."""
    words = [*RUN, f"data.root={small}", f"run_dir={tmp_path / 'run'}", "data.val_fraction=0.25"]
    found = run.train(*cli.checked(words))
    assert found["checkpoint"]["step"] == 2
    assert found["data"]["splits"] == {
        "train": {"images": 25, "classes": 6},
        "val": {"images": 8, "classes": 2},
        "test": {"images": 33, "classes": 6, "queries": 13, "gallery": 20},
    }
    assert found["protocol"]["name"] == "standard"
    assert found["protocol"]["class_disjoint"] is True
    assert found["protocol"]["queries"].startswith("the test split's queries against its gallery")
    metrics = found["metrics"]["test"]
    assert list(metrics)[:6] == [f"recall@{k}" for k in (1, 10, 20, 30, 40, 50)]
    assert metrics["recall@20"] == 1.0, "20 gallery images: the 20 nearest are all of them"
    assert 0 < metrics["recall@1"] < 1
    assert (
        "13 queries in a gallery of 20 images of 6 unseen test classes" in capsys.readouterr().out
    )
    assert eval_command.run([f"run={tmp_path / 'run'}"]) == 0
    again = json.loads((tmp_path / "run" / "evaluation_inshop_test.json").read_text())
    assert again["metrics"] == metrics
    assert (again["queries"], again["gallery"]) == (13, 20)


def test_training_opens_no_test_image(small, tmp_path, monkeypatch):
    """With every test image unreadable, training goes to its end; only the final evaluation fails."""
    index = inshop.load(root=str(small))
    for position in index.splits["test"]:
        (index.root / index.paths[position]).write_bytes(b"no image")
    fitted, fit = [], run.fit
    monkeypatch.setattr(run, "fit", lambda *args: fitted.append(fit(*args)) or fitted[0])
    words = [*RUN, f"data.root={small}", f"run_dir={tmp_path / 'run'}", "data.val_fraction=0.25"]
    with pytest.raises(RunError, match="cannot read the image"):
        run.train(*cli.checked(words))
    assert fitted[0].checkpoint["step"] == 2
    assert not (tmp_path / "run" / "record.json").exists()
