"""dml-search: the nearest images as a table and as a page, in the order and with the marks they deserve."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import tiny_bundle
from full_disk import full_disk
from PIL import Image

from dml.errors import ConfigurationError, RunError
from dml.evaluation.postprocess import Sets, query_expansion
from dml.evaluation.rerank import k_reciprocal
from dml.index import command, faiss_index, open_index, rerank, search_command, writing

DIM = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """encoder/, images/ of two classes, one with a name that is HTML, and ix/, the index of them."""
    top = tmp_path_factory.mktemp("place")
    tiny_bundle(top / "encoder")
    rng = np.random.default_rng(0)
    for name in ("crow", "<b>wren</b>"):
        folder = top / "images" / name.replace("/", "\N{FRACTION SLASH}")
        folder.mkdir(parents=True)
        for number in range(4):
            noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")
    command.run([f"encoder={top / 'encoder'}", f"images={top / 'images'}", f"out={top / 'ix'}"])
    return top


def vectors_index(directory: Path, similarity: str = "cosine") -> tuple[Path, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, DIM))
    labels = rng.integers(0, 8, 120)
    vectors = (centres[labels] + 0.6 * rng.normal(size=(120, DIM))).astype(np.float32)
    directory.mkdir()
    source = writing.Source(None, [f"{n}" for n in range(120)], [f"c{x}" for x in labels], vectors)
    recipe = faiss_index.recipe("flat", 120, DIM)
    writing.create(directory, source, similarity, None, recipe, lambda share: None)
    return directory, vectors


def printed_rows(text: str) -> list[str]:
    """Lines of the table that begin with a rank."""
    return [line for line in text.splitlines() if re.match(r"\s*\d+ +-?\d\.\d{4}", line)]


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


# -- the table


def test_the_nearest_are_listed_and_an_indexed_query_leaves_itself_out(place, capsys, caplog):
    query = place / "images" / "crow" / "0.png"
    assert search_command.run([f"index={place / 'ix'}", f"query={query}", "k=3"]) == 0
    rows = printed_rows(capsys.readouterr().out)
    assert len(rows) == 3
    assert not any("crow/0.png" in row for row in rows)
    assert "is left out of its own results" in caplog.text
    search_command.run([f"index={place / 'ix'}", f"query={query}", "k=3", "include_self=true"])
    first = printed_rows(capsys.readouterr().out)[0]
    assert "crow/0.png" in first
    assert "1.0000" in first


def test_an_image_from_outside_and_one_class_alone(place, tmp_path, capsys):
    shutil.copy(place / "images" / "crow" / "0.png", tmp_path / "copy.png")
    words = [f"index={place / 'ix'}", f"query={tmp_path / 'copy.png'}"]
    search_command.run(words)
    assert "crow/0.png" in printed_rows(capsys.readouterr().out)[0]  # its twin is found
    search_command.run([*words, "where=crow"])
    rows = printed_rows(capsys.readouterr().out)
    assert len(rows) == 4
    assert all("crow/" in row for row in rows)


@pytest.mark.parametrize("form", ["list", "multirun", "directory"])
def test_several_queries(place, form, capsys):
    folder = place / "images" / "crow"
    files = sorted(folder.iterdir())
    words = {
        "list": [f"query=[{files[0]},{files[1]},{files[2]},{files[3]}]"],
        "multirun": ["-m", f"query={','.join(map(str, files))}"],
        "directory": [f"query={folder}"],
    }[form]
    assert search_command.run([f"index={place / 'ix'}", "k=2", *words]) == 0
    assert len(printed_rows(capsys.readouterr().out)) == 8


def test_embeddings_as_queries(tmp_path, capsys):
    directory, vectors = vectors_index(tmp_path / "ix")
    np.save(tmp_path / "q.npy", vectors[[5, 9]])
    assert search_command.run([f"index={directory}", f"query={tmp_path / 'q.npy'}", "k=1"]) == 0
    rows = printed_rows(capsys.readouterr().out)
    assert [row.split()[-1] for row in rows] == ["5", "9"]


def test_an_unreadable_query_is_told_and_the_others_are_answered(place, tmp_path, capsys, caplog):
    (tmp_path / "text.jpg").write_text("no image")
    good = place / "images" / "crow" / "0.png"
    words = [f"index={place / 'ix'}", f"query=[{tmp_path / 'text.jpg'},{good}]", "k=2"]
    assert search_command.run(words) == 1
    assert len(printed_rows(capsys.readouterr().out)) == 2
    assert "text.jpg" in caplog.text
    with pytest.raises(RunError, match="cannot read the image"):
        search_command.run([f"index={place / 'ix'}", f"query={tmp_path / 'text.jpg'}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["query={image}"], "which index"),
        (["index={ix}"], "what is looked for"),
        (["index={ix}/none", "query={image}"], "is no index"),
        (["index={ix}", "query={image}", "kk=3"], "is no option of dml-search"),
        (["index={ix}", "query={image}", "k=0"], "in [1, 10000]"),
        (["index={ix}", "query={image}", "where=crw"], "Did you mean where=crow"),
        (["index={ix}", "query={image}", "rerank=diffusion"], "query_expansion, k_reciprocal"),
        (["index={ix}", "query={image}", "rerank=k_reciprocal", "rerank.k1=0"], "k1=0"),
        (["index={ix}", "query={image}", "rerank.k1=3"], "of which re-ranking"),
        (["index={ix}", "query={ix}/none.png"], "there is no"),
        (["index={ix}", "query={image}", "html=page.txt"], "ends in .html"),
        (["index={ix}", "query={image}", "html={ix}/none/page.html"], "there is no directory"),
    ],
)
def test_wrong_words_are_told(place, words, message):
    image = place / "images" / "crow" / "0.png"
    with pytest.raises(ConfigurationError) as caught:
        search_command.run([word.format(ix=place / "ix", image=image) for word in words])
    assert message in str(caught.value)


def test_another_encoder_is_refused_and_a_moved_one_must_be_named(place, tmp_path):
    image = place / "images" / "crow" / "0.png"
    other = tiny_bundle(tmp_path / "other", seed=1)
    words = [f"index={place / 'ix'}", f"query={image}"]
    with pytest.raises(ConfigurationError, match="Embeddings of two encoders do not compare"):
        search_command.run([*words, f"encoder={other}"])
    shutil.copytree(place / "encoder", tmp_path / "moved")
    command.run(
        [f"encoder={tmp_path / 'moved'}", f"images={place / 'images'}", f"out={tmp_path / 'ix'}"]
    )
    shutil.move(tmp_path / "moved", tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="Say where it is"):
        search_command.run([f"index={tmp_path / 'ix'}", f"query={image}"])
    words = [f"index={tmp_path / 'ix'}", f"query={image}", f"encoder={tmp_path / 'elsewhere'}"]
    assert search_command.run(words) == 0


def test_images_that_have_moved_are_shown_from_where_they_are(place, tmp_path):
    shutil.copytree(place / "images", tmp_path / "moved")
    index = open_index(place / "ix", root=tmp_path / "moved")
    assert all(
        item.file is not None and tmp_path in item.file.parents for item in index.items(range(8))
    )
    with pytest.raises(ConfigurationError, match="is no directory"):
        open_index(place / "ix", root=tmp_path / "none")


# -- the threshold


def test_results_are_marked_by_the_calibrated_threshold(place, tmp_path, capsys, caplog):
    shutil.copytree(place / "ix", tmp_path / "ix")
    command.run([f"calibrate={tmp_path / 'ix'}", "fmr=0.25"])
    index = open_index(tmp_path / "ix")
    assert index.calibration is not None
    hits = index.hits(index.vectors([0]), 8)[0]
    assert [hit.same for hit in hits] == [hit.score >= index.calibration.threshold for hit in hits]
    assert {hit.same for hit in hits} == {True, False}
    capsys.readouterr()
    query = place / "images" / "crow" / "0.png"
    search_command.run([f"index={tmp_path / 'ix'}", f"query={query}", "include_self=true"])
    rows = printed_rows(capsys.readouterr().out)
    assert {"same" if " same " in row else "different" for row in rows} == {"same", "different"}
    assert "95 % intervals over 2 classes" in caplog.text


# -- re-ranking


def test_query_expansion_is_that_of_the_evaluation(tmp_path):
    directory, vectors = vectors_index(tmp_path / "ix")
    index = open_index(directory)
    queries = np.random.default_rng(1).normal(size=(4, DIM)).astype(np.float32)
    step = rerank.step("query_expansion", ["neighbours=5"])
    found, rows = rerank.reranked_search(index, queries, 120, step)
    sets = Sets(torch.from_numpy(queries), torch.from_numpy(vectors), np.full(4, -1))
    expanded = query_expansion(sets, 5, step.options["alpha"]).query.double()
    gallery = torch.nn.functional.normalize(torch.from_numpy(vectors).double())
    truth = (expanded @ gallery.T).argsort(1, descending=True).numpy()
    np.testing.assert_array_equal(rows, truth)
    plain = torch.nn.functional.normalize(torch.from_numpy(queries).double()) @ gallery.T
    np.testing.assert_allclose(found, np.take_along_axis(plain.numpy(), rows, 1), atol=1e-5)
    assert (np.diff(found, axis=1) > 0).any()  # the order is another than that of the scores


def test_k_reciprocal_is_that_of_the_evaluation(tmp_path):
    directory, vectors = vectors_index(tmp_path / "ix")
    index = open_index(directory)
    query = np.random.default_rng(2).normal(size=(1, DIM)).astype(np.float32)
    step = rerank.step("k_reciprocal", ["k1=8", "k2=3"])
    _, rows = rerank.reranked_search(index, query, 20, step)
    sets = Sets(torch.from_numpy(query), torch.from_numpy(vectors), np.array([-1]))
    similarity = k_reciprocal(sets, 8, 3, step.options["weight"])(slice(0, 1))[0]
    # items that tie may come in either order
    np.testing.assert_allclose(similarity[rows[0]], np.sort(similarity)[::-1][:20], atol=1e-5)
    assert rows[0].tolist() != index.search(query, 20)[1][0].tolist()


def test_reranking_wants_cosines(tmp_path):
    directory, vectors = vectors_index(tmp_path / "ix", "euclidean")
    np.save(tmp_path / "q.npy", vectors[:1])
    words = [f"index={directory}", f"query={tmp_path / 'q.npy'}", "rerank=k_reciprocal"]
    with pytest.raises(ConfigurationError, match="compares by cosine"):
        search_command.run(words)


def test_the_values_of_a_step_are_those_of_its_file():
    assert rerank.step("k_reciprocal").options == {"k1": 20, "k2": 6, "weight": 0.3}


# -- the page


@pytest.fixture(scope="module")
def page(place, tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(place / "ix", folder / "ix")
    command.run([f"calibrate={folder / 'ix'}", "fmr=0.25"])
    words = [f"index={folder / 'ix'}", f"query={place / 'images' / 'crow'}", "k=5"]
    assert search_command.run([*words, f"html={folder / 'out.html'}"]) == 0
    return Page((folder / "out.html").read_text())


def test_the_page_shows_every_result_with_its_picture(page):
    images = page.all("img")
    assert len(images) == 4 * (1 + 5)
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert page.text.count("score") >= 20
    assert "= same" in page.text
    assert "≠ different" in page.text


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(page):
    assert not page.all("script")
    assert not page.all("link")
    policy = next(meta for meta in page.all("meta") if "http-equiv" in meta)
    assert policy["content"].startswith("default-src 'none'")


def test_names_on_the_page_are_text(page):
    assert not page.all("b")
    assert "<b>wren" in page.text


def test_the_page_can_be_read_aloud_and_walked_by_keyboard(page):
    """Language, one heading, pictures with text, marks that are not by colour alone."""
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all(image.get("alt") for image in page.all("img"))
    assert len(page.all("main")) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("section"):
        assert attributes["aria-labelledby"] in ids
    assert page.all("a")[0]["href"] == "#results"
    assert any(meta.get("content") == "light dark" for meta in page.all("meta"))


def test_a_page_that_cannot_be_written_leaves_the_old_one(place, tmp_path):
    (tmp_path / "out.html").write_text("before")
    image = place / "images" / "crow" / "0.png"
    words = [f"index={place / 'ix'}", f"query={image}", f"html={tmp_path / 'out.html'}"]
    with full_disk(1000), pytest.raises(RunError, match="cannot write"):
        search_command.run(words)
    assert (tmp_path / "out.html").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]
