"""The page of a run: whole, self-contained, escaped, and with the record's numbers.

A page that shows other numbers than the record, or that a class name can break, is worse than none.
"""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import page_run
import pytest

from dml import cli, measure, record
from dml.config import check
from dml.errors import ConfigurationError, RunError
from dml.report import embedding_map, figures, page, page_evaluation, page_gallery
from dml.tables import read_csv

VOID = {"meta", "input", "br", "img", "link", "hr", "col", "wbr"}


class Document(HTMLParser):
    """Elements of a page, its tables and its text; raises where tags do not close as they opened."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.cell = False
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.cell = tag in ("td", "th") or (self.cell and tag == "span")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.words.append(data)
        if any(tag in ("td", "th") for tag in self.open):
            self.rows[-1][-1] += f" {data.strip()}" if data.strip() else ""

    def attributes(self, name: str) -> list[str]:
        return [a[name] for _, a in self.elements if a.get(name) is not None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    cli.set_up_log()
    folder = tmp_path_factory.mktemp("page")
    return page_run.train(page_run.images(folder / "images"), folder / "run")


@pytest.fixture(autouse=True)
def _no_umap(monkeypatch):
    page_run.without_umap(monkeypatch)


@pytest.fixture(scope="module")
def text(finished):
    with pytest.MonkeyPatch.context() as patch:
        page_run.without_umap(patch)
        return page_run.written(finished)


@pytest.fixture(scope="module")
def document(text):
    return Document(text)


def section(text: str, name: str) -> str:
    return text[text.index(f'<section id="{name}"') :].split('<section id="')[1]


def test_every_element_is_closed_and_every_reference_leads_somewhere(document):
    ids = document.attributes("id")
    assert len(ids) == len(set(ids))
    wanted = [
        word
        for name in ("aria-labelledby", "aria-describedby", "for")
        for word in document.attributes(name)
    ]
    wanted += [link[1:] for link in document.attributes("href") if link.startswith("#")]
    assert set(wanted) <= set(ids)
    assert {"main", "map-picture", "summary-title"} - {"summary-title"} <= set(ids)


def test_nothing_is_fetched_and_only_our_scripts_may_run(text, document):
    """The policy would stop a fetch; that there is nothing to stop is tested, too."""
    for name in ("src", "href", "srcset", "action", "poster"):
        assert all(
            link.startswith(("#", "data:image/webp;base64,")) for link in document.attributes(name)
        )
    assert not re.search(r"@import|url\(", text)
    policy = next(
        a["content"] for tag, a in document.elements if tag == "meta" and "http-equiv" in a
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(scripts) == 2
    assert all(f"'sha256-{digest}'" in policy for digest in digests)
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_it_is_small_and_every_picture_has_a_text(text, document):
    assert len(text.encode()) < page.LIMIT
    for tag, attributes in document.elements:
        if tag == "img":
            assert attributes.get("alt")
        if tag == "svg":
            told = attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
            assert told, attributes
        if tag == "option" or attributes.get("role") == "option":
            assert attributes.get("aria-label") or tag == "option"
    pictures = [a for tag, a in document.elements if tag == "svg" and a.get("class") == "picture "]
    assert len(pictures) > 3 * page_gallery.QUERIES // 2


def test_an_image_that_is_shown_often_is_stored_once(text, document):
    stored = [a["id"] for tag, a in document.elements if tag == "image"]
    uses = [a["href"] for tag, a in document.elements if tag == "use"]
    assert len(uses) > len(stored) == len(set(stored))
    assert {f"#{name}" for name in stored} == set(uses)
    thumbnails = json.loads(re.search(r'id="thumbnails">(.*?)</script>', text, re.S)[1])
    assert not {f"picture-{item}" for item in thumbnails} & set(stored)
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', text, re.S)[1])
    assert {f"picture-{i}" for i in data["item"]} <= set(stored) | {
        f"picture-{i}" for i in thumbnails
    }


def test_the_numbers_are_those_of_the_record(finished, document):
    found = record.read(finished)["metrics"]
    rows = {
        row[0].strip(): row[1:] for row in document.rows if row and row[0].strip() in found["test"]
    }
    assert set(rows) == set(found["test"])
    for metric, cells in rows.items():
        for name, cell in zip(("frozen", "untrained", "test"), cells, strict=False):
            value, low, high = map(float, re.findall(r"-?\d\.\d+", cell))
            assert value == pytest.approx(found[name][metric], abs=5e-5)
            assert low <= value + 1e-4
            assert high >= value - 1e-4
        gain = float(re.findall(r"[+−]\d\.\d{4}", cells[3])[0].replace("−", "-"))
        assert gain == pytest.approx(found["test"][metric] - found["untrained"][metric], abs=1e-4)


def test_intervals_are_those_of_the_bootstrap(finished):
    """Against a plain loop over resamples of the trained encoder's values."""
    found = page_evaluation.evaluate(finished)
    spans = page_evaluation.intervals(found)
    values = found.results["test"].per_query["recall@1"]
    rng = np.random.default_rng(7)
    means = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    span = spans.values["test", "recall@1"]
    assert (span.low, span.high) == pytest.approx((low, high), abs=0.03)
    assert spans.over == "queries"


def test_class_names_are_text_wherever_they_stand(text, document):
    for name in page_run.NAMES:
        assert any(
            name in words
            for words in (" ".join(document.words), *document.attributes("aria-label"))
        )
    assert "<b>bold" not in text
    assert "<script>alert" not in text
    assert "49" not in [word.strip() for word in document.words]


def test_no_word_of_a_failed_number(document):
    visible = " ".join([*document.words, *document.attributes("aria-label")])
    assert not re.search(r"\b(nan|NaN|inf|None|undefined|Undefined)\b", visible)


def test_the_paragraph_says_what_the_numbers_say(finished, text):
    found = record.read(finished)["metrics"]
    lead = re.search(r'<p class="lead">(.*?)</p>', text, re.S)[1]
    trained, untrained = found["test"]["recall@1"], found["untrained"]["recall@1"]
    assert f"a Recall@1 of {trained:.3f}" in lead
    moved = (
        "rose from" if trained > untrained else "fell from" if trained < untrained else "stayed at"
    )
    assert f"It {moved} {untrained:.3f}" in lead
    assert f"reach {found['frozen']['recall@1']:.3f}" in lead


def test_the_configuration_says_who_chose_what(finished, document):
    rows = [tuple(cell.strip() for cell in row) for row in document.rows]
    assert ("loss", "circle", "command line") in rows
    assert ("sampler", "pk", "loss=circle") in rows
    assert ("head.dim", "16", "command line") in rows
    options = check.flat(measure.DictConfig(record.read(finished)["config"]))
    shown = {row[0] for row in rows if len(row) == 2}
    assert {key for key, value in options.items() if value != {}} <= shown


def test_curves_have_the_numbers_of_the_file(finished, text):
    rows = read_csv(finished / "metrics.csv")
    losses = [float(row["train/loss"]) for row in rows if "train/loss" in row]
    assert f"Training loss: {losses[0]:.4g} at first, {losses[-1]:.4g} at the end" in text
    rates = [float(row["lr/head"]) for row in rows if "lr/head" in row]
    assert len(rates) == len(losses)
    caption = re.search(r"Learning rates; the highest of each: ([^<]*)<", text)[1]
    assert f"head {figures.number(max(rates))}" in caption
    assert "trunk " in caption


def test_the_same_run_makes_the_same_page(finished, text, tmp_path):
    assert page_run.written(finished, tmp_path / "again.html") == text


def test_numbers_that_do_not_come_out_again_are_told_loudly(finished, tmp_path, caplog):
    """A checkpoint that was replaced, another library: the reader must know."""
    directory = page_run.copied(finished, tmp_path / "run")

    def change(content):
        content["metrics"]["test"]["recall@1"] = 0.123456

    page_run.rewritten(directory, change)
    text = page_run.written(directory)
    assert "NOT THE RECORD'S NUMBER: trained recall@1 is 0.123456" in caplog.text
    assert '<div class="notice" role="alert">' in text
    assert "0.123456" in text
    assert "1 number was not the record's" in re.sub(r"\s+", " ", text)


def test_other_images_than_those_of_the_run_are_refused(finished, tmp_path):
    directory = page_run.copied(finished, tmp_path / "run")
    other = page_run.images(tmp_path / "other")
    lines = (other / "labels.csv").read_text().splitlines()
    (other / "labels.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(RunError, match=r"39 test images of 4 classes now, 40 of 4 then"):
        page.write(directory, elsewhere={"data.root": str(other)})
    assert not (directory / page.FILE).exists() or (directory / page.FILE).stat().st_size


def test_images_that_are_gone_or_elsewhere(finished, text, tmp_path):
    directory = page_run.copied(finished, tmp_path / "run")
    gone = str(tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="gone"):
        page.write(directory, elsewhere={"data.root": gone})
    moved = page_run.images(tmp_path / "moved")
    again = page_run.written(directory, elsewhere={"data.root": str(moved)})
    assert re.findall(r'<table class="results">.*?</table>', again, re.S) == re.findall(
        r'<table class="results">.*?</table>', text, re.S
    )


@pytest.mark.parametrize(("key", "value"), [("loss.margin", "0.1"), ("data.seed", "1")])
def test_what_was_run_cannot_be_changed_on_its_page(finished, key, value):
    with pytest.raises(ConfigurationError, match=f"{key}={value}"):
        page.write(finished, elsewhere={key: value})


def test_what_is_no_run_and_where_nothing_can_be_written(finished, tmp_path):
    with pytest.raises(RunError, match="no finished run"):
        page.write(tmp_path)
    with pytest.raises(RunError, match="is a directory"):
        page.write(finished, tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        page.write(finished, tmp_path / "no" / "page.html")


def test_queries_against_a_gallery(finished):
    """In-Shop's kind: the gallery alone is found, and only queries are asked."""
    found = page_evaluation.evaluate(finished)
    is_query = np.arange(len(found.embedded)) % 2 == 0
    embedded = replace(found.embedded, is_query=is_query)
    config = page_evaluation.config_of(found.finished, finished, {})
    results = {name: measure.measure(embedded, config) for name in page_evaluation.ENCODERS}
    finished_record = json.loads(json.dumps(found.finished))
    finished_record["data"]["splits"]["test"] |= {"queries": 20, "gallery": 20}
    made = page.page(replace(found, embedded=embedded, results=results, finished=finished_record))
    Document(made)
    assert "Of 100 query images" in made
    assert "20 queries against a gallery of 20" in made
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', made, re.S)[1])
    assert [mark == "other" for mark in data["mark"]] == [not q for q in is_query]
    assert all(data["nearest"][i] % 2 == 1 for i in np.flatnonzero(is_query))


def test_pictures_give_way_where_names_take_the_room(finished, text, monkeypatch):
    """However little is left, the page stays below its limit."""
    found = page_evaluation.evaluate(finished)
    monkeypatch.setattr(page, "SPARE", 1000)
    thumbnails = json.loads(re.search(r'id="thumbnails">(.*?)</script>', text, re.S)[1])
    if not thumbnails:
        monkeypatch.setattr(page_gallery, "QUERIES", 1)
        monkeypatch.setattr(page_gallery, "NEAREST", 2)
        text = page.page(found)
        thumbnails = json.loads(re.search(r'id="thumbnails">(.*?)</script>', text, re.S)[1])
    taken = sum(map(len, thumbnails.values()))
    assert taken
    monkeypatch.setattr(page, "LIMIT", len(text.encode()) - taken // 2)
    made = page.page(found)
    assert len(made.encode()) <= page.LIMIT
    Document(made)


def test_without_umap_the_page_says_so(text):
    assert "UMAP is not installed here (pip install &#39;dml[umap]&#39;)" in text


@pytest.mark.slow
def test_umap_stands_beside_pca(finished, tmp_path, monkeypatch):
    pytest.importorskip("umap", reason="UMAP NOT TESTED: umap-learn is not installed")
    monkeypatch.setattr(embedding_map, "umap_installed", lambda: True)
    made = page_run.written(finished, tmp_path / "page.html")
    Document(made)
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', made, re.S)[1])
    assert len(data["layouts"]) == 2
    assert page_run.written(finished, tmp_path / "again.html") == made
