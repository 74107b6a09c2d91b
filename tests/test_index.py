"""dml-index: what is embedded is found again, whatever is added, removed, killed or damaged in between."""

import csv
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from bundles import tiny_bundle
from full_disk import full_disk
from PIL import Image

from dml import cli
from dml.errors import ConfigurationError, RunError
from dml.index import (
    calibrating,
    command,
    embedding,
    faiss_index,
    files,
    measuring,
    open_index,
    writing,
)
from dml.index.store import Index
from dml.index.vectors import prepared

DIM = 8
QUICK = "IVF4,PQ4x4"  # 16 centroids a code: trained in no time


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "encoder")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Two classes of four images of 24 x 24 noise."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("crow", "wren"):
        (folder / name).mkdir()
        for number in range(4):
            noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    shutil.copytree(pictures, tmp_path / "images")
    return tmp_path / "images"


def vectors_of(count: int = 400, classes: int = 20, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, DIM))
    labels = rng.integers(0, classes, count)
    points = centres[labels] + 0.3 * rng.normal(size=(count, DIM))
    return points.astype(np.float32), [f"c{label}" for label in labels]


def made(
    directory: Path, kind: str = "flat", similarity: str = "cosine", count: int = 400
) -> Index:
    directory.mkdir(exist_ok=True)
    vectors, labels = vectors_of(count)
    recipe = faiss_index.recipe(kind, count, DIM)
    source = writing.Source(None, [f"{n}.jpg" for n in range(count)], labels, vectors)
    writing.create(directory, source, similarity, None, recipe, lambda share: None)
    index = open_index(directory)
    assert isinstance(index, Index)
    return index


def expected(similarity: str, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Scores in float64, straight from their definitions."""
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    if similarity == "cosine":
        return (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (
            v / np.linalg.norm(v, axis=1, keepdims=True)
        ).T
    if similarity == "dot":
        return q @ v.T
    return -np.linalg.norm(q[:, None] - v[None], axis=2)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# -- search


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("kind", ["flat", "hnsw", QUICK])
def test_results_are_those_of_the_definition(tmp_path, kind, similarity):
    """Scores equal float64 ones for every kind; flat finds exactly the nearest, in order."""
    index = made(tmp_path / "ix", kind, similarity)
    queries, _ = vectors_of(20, seed=5)
    found, rows = index.search(queries, 10)
    truth = expected(similarity, queries, vectors_of()[0])
    np.testing.assert_allclose(found, np.take_along_axis(truth, rows, 1), rtol=1e-5, atol=1e-5)
    best = np.argsort(-truth, axis=1)[:, :10]
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, best, strict=True)])
    if kind == "flat":
        np.testing.assert_array_equal(rows, best)
    else:
        assert shared > 0.8


def test_a_vector_that_is_stored_twice_comes_back_twice_in_the_order_of_its_rows(tmp_path):
    index = made(tmp_path / "ix")
    vectors, _ = vectors_of()
    writing.append(index, writing.Source(None, ["twin.jpg"], ["c0"], vectors[7:8]))
    found, rows = open_index(tmp_path / "ix").search(vectors[7:8], 2)
    assert rows.tolist() == [[7, 400]]
    assert found[0, 0] == found[0, 1]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_removed_images_never_come_back_and_do_not_shorten_the_list(tmp_path, kind):
    """Also where all the nearest are removed, so that the first candidates are all gone."""
    index = made(tmp_path / "ix", kind)
    vectors, labels = vectors_of()
    gone = np.flatnonzero(np.array(labels) == labels[0])
    writing.remove(index, gone)
    index = open_index(tmp_path / "ix")
    _, rows = index.search(vectors[:1], 50)
    assert not set(rows[0]) & set(gone)
    assert (rows >= 0).all()
    assert len(index) == 400 - len(gone)
    assert labels[0] not in index.labels
    with pytest.raises(ValueError, match="no image with the number"):
        index.items([gone[0]])
    if kind == "flat":
        truth = expected("cosine", vectors[:1], vectors)
        truth[:, gone] = -np.inf
        np.testing.assert_array_equal(rows, np.argsort(-truth, axis=1)[:, :50])


def test_where_and_exclude(tmp_path):
    index = made(tmp_path / "ix", "hnsw")
    vectors, labels = vectors_of()
    _, rows = index.search(vectors[:3], 400, where="c3")
    members = {n for n, label in enumerate(labels) if label == "c3"}
    for row in rows:
        assert set(row[row >= 0]) == members  # exact, however few
    _, rows = index.search(vectors[:3], 5, exclude=np.array([0, -1, 2]))
    assert rows[0, 0] != 0
    assert rows[1, 0] == 1
    assert rows[2, 0] != 2
    with pytest.raises(ValueError, match="no class 'zebra'"):
        index.search(vectors[:1], 5, where="zebra")


def test_more_results_than_images_are_padded(tmp_path):
    index = made(tmp_path / "ix", count=5)
    found, rows = index.search(vectors_of()[0][:1], 9)
    assert (rows[0, 5:] == -1).all()
    assert np.isneginf(found[0, 5:]).all()
    assert len(index.hits(vectors_of()[0][:1], 9)[0]) == 5


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.zeros((1, DIM + 1)), "this index holds"),
        (np.full((1, DIM), np.nan), "NaN or infinity"),
        (np.zeros(DIM), "shape"),
    ],
)
def test_queries_that_do_not_fit_are_refused(tmp_path, queries, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "ix").search(queries, 3)


def test_searching_from_many_threads_gives_what_one_gives(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    index = made(tmp_path / "ix", "hnsw")
    queries, _ = vectors_of(64, seed=3)
    alone = index.search(queries, 5)[1]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: index.search(queries[n : n + 1], 5)[1][0], range(64)))
    np.testing.assert_array_equal(alone, np.stack(found))


# -- kinds of index, and what they cost


def test_the_default_follows_the_size():
    kinds = [faiss_index.recipe(None, n, 128).kind for n in (100, 49_999, 50_000, 999_999, 10**6)]
    assert kinds == ["flat", "flat", "hnsw", "hnsw", "ivf_pq"]
    factory = faiss_index.recipe("ivf_pq", 10**6, 128).factory
    assert factory == "IVF4096,PQ32"  # 4 sqrt(n) lists; a quarter of 128 numbers
    assert 4 * 10**3 <= 4096 <= 16 * 10**3


@pytest.mark.parametrize(
    ("factory", "refine"),
    [
        *(("HNSW32", 1), ("IVF64,Flat", 1), ("IVF64_HNSW32,Flat", 1), ("HNSW32,Flat", 1)),
        *(("PCA16,Flat", 8), ("IVF64,PQ8", 8), ("OPQ8,PQ8", 8), ("PQ8,RFlat", 1), ("SQ8", 8)),
    ],
)
def test_what_is_compressed_is_compared_again_more_deeply(factory, refine):
    assert faiss_index.recipe(factory, 10_000, 128).refine == refine


@pytest.mark.parametrize(("count", "most"), [(100, 2), (39 * 64, 64), (10**6, 4096)])
def test_there_are_vectors_enough_to_train_every_list(count, most):
    assert faiss_index.lists(count) == most
    assert count // faiss_index.lists(count) >= faiss_index.LEAST_PER_LIST


@pytest.mark.parametrize(
    ("word", "parameters", "message"),
    [
        ("HNWS32", None, "could not parse"),
        ("IDMap,Flat", None, "rows are numbered here"),
        ("hnsw", "nprobe=3", "are none of"),
    ],
)
def test_a_wrong_factory_string_or_parameter_is_told(word, parameters, message):
    (problem,) = faiss_index.problems(word, parameters, 400, DIM, "cosine")
    assert message in problem.what


def test_recall_is_against_exact_search_and_speed_and_bytes_are_measured(tmp_path):
    index = made(tmp_path / "ix")
    row = measuring.measure(index, measuring.truth(index))
    assert (row.recall, row.bytes_per_image, row.queries) == (1.0, 4 * DIM, 400)
    assert row.queries_per_second > 0

    class Wrong:
        ntotal = 400

        def search(self, queries, k):
            return None, np.tile(np.arange(k), (len(queries), 1))  # the same for every query

    index.faiss_index, index.refine = Wrong(), 1
    truth = measuring.truth(index)
    found, _ = index.search(truth.queries, truth.k, exclude=truth.own)
    assert float((found >= truth.least[:, None]).mean()) < 0.2


def test_adding_finds_the_new_ones_and_rebuilding_drops_the_removed(tmp_path):
    for kind in ("flat", "hnsw", QUICK):
        directory = tmp_path / kind.replace(",", "_")
        index = made(directory, kind)
        extra, labels = vectors_of(30, seed=8)
        new = writing.Source(None, [f"new{n}" for n in range(30)], labels, extra)
        writing.append(index, new)
        index = open_index(directory)
        assert len(index) == 430
        assert index.hits(extra[:1], 1)[0][0].path == "new0"
        writing.remove(index, np.arange(100))
        writing.rebuild(open_index(directory), faiss_index.recipe("flat", 330, DIM), lambda s: None)
        index = open_index(directory)
        assert (len(index), index.rows, index.kind) == (330, 330, "flat")
        assert index.hits(extra[:1], 1)[0][0].path == "new0"
        assert not any(name.startswith(("faiss-", "removed-")) for name in names(directory))


# -- damage


@pytest.mark.parametrize("prefix", ["vectors-", "items-", "faiss-", "removed-"])
def test_a_changed_byte_in_any_file_is_found(tmp_path, prefix):
    index = made(tmp_path / "ix", "hnsw")
    writing.remove(index, np.array([3]))
    (path,) = (tmp_path / "ix").glob(f"{prefix}*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{path.name} is not as it was written"):
        open_index(tmp_path / "ix")
    path.write_bytes(content[:-1])
    with pytest.raises(RunError, match="bytes, not the"):
        open_index(tmp_path / "ix")
    path.unlink()
    with pytest.raises(RunError, match=f"{path.name} is gone"):
        open_index(tmp_path / "ix")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:50], "is no JSON"),
        (lambda text: text.replace('"dim": 8', '"dim": 9'), "not as dml-index wrote it"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "reads format 1"),
        (lambda text: "[]", "is no index"),
    ],
)
def test_a_changed_index_json_is_found(tmp_path, change, message):
    made(tmp_path / "ix")
    path = tmp_path / "ix" / files.FILE
    path.write_text(change(path.read_text()))
    with pytest.raises(RunError, match=message):
        open_index(tmp_path / "ix")


@pytest.mark.parametrize("act", ["append", "rebuild", "create"])
def test_a_full_disk_leaves_the_index_as_it_was(tmp_path, act):
    index = made(tmp_path / "ix", "hnsw")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ix").iterdir()}
    source = writing.Source(None, ["x"] * 400, ["y"] * 400, vectors_of()[0])
    recipe = faiss_index.recipe("hnsw", 400, DIM)
    (tmp_path / "new").mkdir()
    new = tmp_path / "new"
    acts = {
        "append": lambda: writing.append(index, source),
        "rebuild": lambda: writing.rebuild(index, recipe, lambda share: None),
        "create": lambda: writing.create(new, source, "cosine", None, recipe, lambda share: None),
    }
    with full_disk(20_000), pytest.raises(RunError, match="cannot write the index"):
        acts[act]()
    assert {path.name: path.read_bytes() for path in (tmp_path / "ix").iterdir()} == before
    assert not names(tmp_path / "new")
    assert len(open_index(index.path)) == 400


def test_a_full_disk_while_embedding_keeps_what_was_done(folder, bundle, tmp_path, monkeypatch):
    words = [f"encoder={bundle}", f"images={folder}", f"out={tmp_path / 'ix'}", "batch_size=2"]
    monkeypatch.setattr(embedding, "KEEP_EVERY", 2)
    real, kept = embedding.Partial.keep, []

    def keep(partial, done):
        if len(kept) == 2:
            with full_disk(100):
                real(partial, done)
        real(partial, done)
        kept.append(done)

    monkeypatch.setattr(embedding.Partial, "keep", keep)
    with pytest.raises(RunError, match="make room, and the same command goes on"):
        command.run(words)
    assert len(list((tmp_path / "ix" / files.PARTIAL).glob("part-*"))) == 2
    monkeypatch.setattr(embedding.Partial, "keep", real)
    assert command.run(words) == 0
    assert len(open_index(tmp_path / "ix")) == 8


def test_two_commands_do_not_write_at_once(tmp_path):
    index = made(tmp_path / "ix")
    with (
        files.locked(index.path),
        pytest.raises(RunError, match="another dml-index is writing"),
        files.locked(index.path),
    ):
        pass


# -- images


def test_a_folder_becomes_an_index_that_finds_its_images(folder, bundle, tmp_path, capsys):
    assert command.run([f"encoder={bundle}", f"images={folder}", f"out={tmp_path / 'ix'}"]) == 0
    index = open_index(tmp_path / "ix")
    assert (len(index), index.labels, index.kind) == (8, ["crow", "wren"], "flat")
    import dml

    encoder = dml.load_encoder(bundle)
    index.check_encoder(encoder)
    vector = encoder([folder / "wren" / "2.png"]).numpy()
    hit = index.hits(vector, 1)[0][0]
    assert (hit.path, hit.label) == ("wren/2.png", "wren")
    assert hit.score == pytest.approx(1, abs=1e-5)
    assert hit.file == folder / "wren" / "2.png"
    assert index.row_of(folder / "wren" / "2.png") == hit.row
    assert "recall@" in capsys.readouterr().out
    assert index.manifest["measured"]["recall"] == 1.0
    assert names(tmp_path / "ix") >= {"index.json"}
    assert files.PARTIAL not in names(tmp_path / "ix")


def png_header(width: int, height: int) -> bytes:
    """A PNG of this size whose pixels, were they decoded, would not end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def test_what_cannot_be_read_is_listed_and_the_rest_is_indexed(folder, bundle, tmp_path, capsys):
    outside = tmp_path / "secret.png"
    Image.new("RGB", (9, 9)).save(outside)
    (folder / "crow" / "text.jpg").write_text("no image")
    (folder / "crow" / "huge.png").write_bytes(png_header(50_000, 50_000))
    (folder / "crow" / "cut.png").write_bytes((folder / "crow" / "0.png").read_bytes()[:300])
    (folder / "crow" / "out.png").symlink_to(outside)
    (folder / "crow" / "self.png").symlink_to("self.png")
    (folder / "crow" / "round").symlink_to(folder)
    os.mkfifo(folder / "crow" / "pipe.png")
    frames = [Image.new("RGB", (24, 24), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "wren" / "moving.gif", save_all=True, append_images=frames[1:])
    begin = time.monotonic()
    assert command.run([f"encoder={bundle}", f"images={folder}", f"out={tmp_path / 'ix'}"]) == 0
    assert time.monotonic() - begin < 600  # nothing was decoded endlessly, no pipe waited for
    with (tmp_path / "ix" / files.UNREADABLE).open(newline="") as file:
        why = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert set(why) == {
        *("crow/text.jpg", "crow/huge.png", "crow/cut.png", "crow/out.png"),
        *("crow/self.png", "crow/round", "crow/pipe.png"),
    }
    assert "leads outside" in why["crow/out.png"]
    assert "no regular file" in why["crow/pipe.png"]
    assert "2500000000 pixels" in why["crow/huge.png"]
    printed = capsys.readouterr().out
    assert "7 files are not in the index" in printed
    index = open_index(tmp_path / "ix")
    assert len(index) == 9
    # of the animation, the first frame
    import dml

    encoder = dml.load_encoder(bundle)
    row = index.row_of(folder / "wren" / "moving.gif")
    assert row is not None
    first = prepared(encoder([Image.new("RGB", (24, 24), "red")]).numpy(), "cosine")
    np.testing.assert_allclose(index.vectors([row]), first, atol=1e-5)


def test_names_with_newlines_unicode_and_no_valid_text_survive(pictures, bundle, tmp_path):
    folder = tmp_path / "images"
    odd = ["line\nbreak", "Übér \N{BIRD}", 'quote",comma', "\udcff\udcfe"]
    for name, source in zip(odd, sorted((pictures / "crow").iterdir()), strict=True):
        (folder / name).mkdir(parents=True)
        shutil.copy(source, folder / name / f"{name}.png")
    (folder / odd[3] / "bad\udcff.jpg").write_text("no image")
    assert command.run([f"encoder={bundle}", f"images={folder}", f"out={tmp_path / 'ix'}"]) == 0
    index = open_index(tmp_path / "ix")
    assert {item.path for item in index.items(range(4))} == {f"{name}/{name}.png" for name in odd}
    assert all(item.file is not None and item.file.is_file() for item in index.items(range(4)))
    assert set(index.labels) == set(odd)
    listed = (tmp_path / "ix" / files.UNREADABLE).read_text(errors="surrogateescape")
    assert "bad\udcff.jpg" in listed


def test_a_link_that_is_bent_outwards_later_is_not_followed(folder, bundle, tmp_path):
    """What a served page may show lies in the folder at the time it is shown."""
    command.run([f"encoder={bundle}", f"images={folder}", f"out={tmp_path / 'ix'}"])
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9)).save(secret)
    (folder / "crow" / "0.png").unlink()
    (folder / "crow" / "0.png").symlink_to(secret)
    index = open_index(tmp_path / "ix")
    (item,) = (i for i in index.items(range(8)) if i.path == "crow/0.png")
    assert item.file is None


def test_labels_from_a_file_and_one_split_of_it(folder, bundle, tmp_path):
    rows = [
        ("crow/0.png", "bird", "test"),
        ("wren/1.png", "tiny", "test"),
        ("wren/2.png", "x", "train"),
    ]
    (folder / "labels.csv").write_text(
        "path,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows)
    )
    words = [f"encoder={bundle}", f"images={folder}", "labels=labels.csv", "split=test"]
    assert command.run([*words, f"out={tmp_path / 'ix'}"]) == 0
    index = open_index(tmp_path / "ix")
    assert [(i.path, i.label) for i in index.items([0, 1])] == [
        ("crow/0.png", "bird"),
        ("wren/1.png", "tiny"),
    ]


def test_add_embeds_only_what_is_new_and_remove_takes_by_path_directory_and_pattern(
    folder, bundle, tmp_path, caplog
):
    out = f"out={tmp_path / 'ix'}"
    command.run([f"encoder={bundle}", f"images={folder}", out])
    shutil.copytree(folder / "wren", folder / "owl")
    assert command.run([f"add={folder}", out]) == 0
    assert "4 images are new, 8 are there already." in caplog.text
    assert len(open_index(tmp_path / "ix")) == 12
    assert command.run(["remove=[crow/0.png,owl]", out]) == 0
    assert command.run(["remove=*/3.png", out]) == 0
    index = open_index(tmp_path / "ix")
    left = {item.path for item in index.items(index.live_rows())}
    assert left == {f"{c}/{n}.png" for c in ("crow", "wren") for n in range(3)} - {"crow/0.png"}
    assert command.run([f"add={folder}", out]) == 0  # what was removed is new again
    assert len(open_index(tmp_path / "ix")) == 12


def test_an_image_that_is_unreadable_today_can_be_added_tomorrow(folder, bundle, tmp_path):
    good = (folder / "crow" / "0.png").read_bytes()
    (folder / "crow" / "0.png").write_bytes(good[:100])
    out = f"out={tmp_path / 'ix'}"
    command.run([f"encoder={bundle}", f"images={folder}", out])
    assert files.UNREADABLE in names(tmp_path / "ix")
    (folder / "crow" / "0.png").write_bytes(good)
    command.run([f"add={folder}", out])
    assert len(open_index(tmp_path / "ix")) == 8
    assert files.UNREADABLE not in names(tmp_path / "ix")


KILLED = """
import os, signal, sys
from dml.index import embedding, command
embedding.KEEP_EVERY = 2
keep = embedding.keep
def counted(partial, done, seen=[0]):
    keep(partial, done)
    seen[0] += 1
    if seen[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
embedding.keep = counted
command.run(sys.argv[1:])
"""


def test_a_killed_command_goes_on_where_it_was(folder, bundle, tmp_path, monkeypatch):
    words = [f"encoder={bundle}", f"images={folder}", f"out={tmp_path / 'ix'}", "batch_size=2"]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path / "ix") == {files.LOCK, files.PARTIAL}
    with pytest.raises(RunError, match="is no index"):
        open_index(tmp_path / "ix")
    seen: list[str] = []
    batches = embedding.embedded_batches

    def watched(root, paths, *rest):
        seen.extend(paths)
        return batches(root, paths, *rest)

    monkeypatch.setattr(embedding, "embedded_batches", watched)
    other = [f"encoder={bundle}", f"images={folder / 'crow'}", words[2]]
    with pytest.raises(ConfigurationError, match="begun work of another command"):
        command.run(other)
    assert command.run(words) == 0
    assert len(seen) == 4  # the other half was kept
    resumed = open_index(tmp_path / "ix")
    command.run([*words[:2], f"out={tmp_path / 'whole'}", "batch_size=2"])
    whole = open_index(tmp_path / "whole")
    assert [i.path for i in resumed.items(range(8))] == [i.path for i in whole.items(range(8))]
    np.testing.assert_array_equal(resumed.vectors(range(8)), whole.vectors(range(8)))


# -- command lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=x"], "what is to be done"),
        (["images={folder}", "encoder={bundle}"], "needs out=..."),
        (["images={folder}", "out={new}"], "needs encoder=..."),
        (["images={folder}", "encoder={folder}", "out={new}"], "is no bundle"),
        (["images={new}", "encoder={bundle}", "out={new}"], "there is no"),
        (["images={empty}", "encoder={bundle}", "out={new}"], "holds no images"),
        (["images={folder}", "encoder={bundle}", "out={folder}"], "holds other files"),
        (["images={folder}", "encoder={bundle}", "out={new}", "index=HNWS"], "could not parse"),
        (
            ["images={folder}", "encoder={bundle}", "out={new}", "batchsize=3"],
            "Did you mean batch_size",
        ),
        (["images={folder}", "encoder={bundle}", "out={new}", "batch_size=0"], "at least 1"),
        (["images={folder}", "encoder={bundle}", "out={new}", "store=milvus"], "Add address=URI"),
        (["images={folder}", "encoder={bundle}", "out={new}", "address=x"], "goes with store="),
        (["images={folder}", "encoder={bundle}", "out={new}", "split=test"], "labels=FILE"),
        (["images={folder}", "add={folder}", "out={new}"], "different things to do"),
        (["calibrate={new}", "fmr=2"], "in (0, 1)"),
        (["calibrate={new}"], "needs fmr=..."),
        (["check={new}"], "is no index"),
        (["add={folder}", "out={empty}"], "is no index"),
        (["embeddings={new}.txt", "out={new}"], "must end in .npz or .npy"),
        (["--add", "check={new}"], "is no flag"),
    ],
)
def test_a_wrong_command_line_is_told_and_makes_nothing(words, message, folder, bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {
        "folder": folder,
        "bundle": bundle,
        "new": tmp_path / "new",
        "empty": tmp_path / "empty",
    }
    with pytest.raises(ConfigurationError) as caught:
        command.run([word.format(**places) for word in words])
    assert message in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_another_encoder_is_refused(folder, bundle, tmp_path):
    command.run([f"encoder={bundle}", f"images={folder}", f"out={tmp_path / 'ix'}"])
    other = tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(ConfigurationError, match="is not the encoder that"):
        command.run([f"add={folder}", f"out={tmp_path / 'ix'}", f"encoder={other}"])
    import dml

    with pytest.raises(RunError, match="was built by another encoder"):
        open_index(tmp_path / "ix").check_encoder(dml.load_encoder(other))


def test_embeddings_from_elsewhere(tmp_path, capsys):
    vectors, labels = vectors_of(50)
    np.savez(
        tmp_path / "a.npz", embeddings=vectors, labels=np.array(labels), similarity="euclidean"
    )
    out = tmp_path / "ix"
    assert command.run([f"embeddings={tmp_path / 'a.npz'}", f"out={out}", "index=hnsw"]) == 0
    index = open_index(out)
    assert (index.similarity, index.kind, index.encoder_fingerprint) == ("euclidean", "hnsw", None)
    assert command.run([f"check={out}"]) == 0
    np.save(tmp_path / "b.npy", vectors[:, :4])
    with pytest.raises(ConfigurationError, match="embeddings of 4 numbers"):
        command.run([f"add={tmp_path / 'b.npy'}", f"out={out}"])
    broken = vectors.copy()
    broken[3, 1] = np.nan
    np.save(tmp_path / "c.npy", broken)
    with pytest.raises(ConfigurationError, match="NaN or infinity in rows 3"):
        command.run([f"embeddings={tmp_path / 'c.npy'}", f"out={tmp_path / 'other'}"])
    assert not (tmp_path / "other").exists()


def test_tune_writes_all_it_tried_and_draws_it(tmp_path, capsys):
    made(tmp_path / "ix")
    assert command.run([f"tune={tmp_path / 'ix'}"]) == 0
    with (tmp_path / "ix" / "tune.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} >= {"Flat", "HNSW16", "HNSW32", "IVF8,Flat"}
    assert any(row["on_frontier"] == "True" for row in rows)
    every = [row for row in rows if row["parameters"] == "nprobe=4"]
    assert all(float(row["recall"]) <= 1 for row in every)
    with Image.open(tmp_path / "ix" / "tune.png") as picture:
        assert min(picture.size) > 300
    assert len(open_index(tmp_path / "ix")) == 400  # checksums still hold


def test_rebuild_keeps_the_calibration_and_the_encoder(folder, bundle, tmp_path):
    out = tmp_path / "ix"
    command.run([f"encoder={bundle}", f"images={folder}", f"out={out}"])
    command.run([f"calibrate={out}", "fmr=0.25"])
    before = open_index(out)
    assert command.run([f"rebuild={out}", "index=hnsw", "parameters=efSearch=99"]) == 0
    after = open_index(out)
    assert (after.kind, after.manifest["search"]["parameters"]) == ("hnsw", "efSearch=99")
    assert after.calibration == before.calibration
    assert after.encoder_fingerprint == before.encoder_fingerprint


# -- the threshold


def brute_rates(vectors, classes, similarity, threshold):
    """FMR and FNMR counted pair by pair in float64."""
    scores = expected(similarity, vectors, vectors)
    upper = np.triu(np.ones_like(scores, dtype=bool), 1)
    same = classes[:, None] == classes[None]
    passed = scores >= threshold
    return passed[upper & ~same].mean(), (~passed)[upper & same].mean()


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_the_threshold_gives_the_rate_that_was_asked_for(similarity):
    vectors, labels = vectors_of(300)
    vectors = prepared(vectors, similarity)
    _, classes = np.unique(labels, return_inverse=True)
    found = calibrating.calibrate(vectors, classes, similarity, 0.01, "x", lambda s: None)
    fmr, fnmr = brute_rates(vectors, classes, similarity, found.threshold - 1e-9)
    assert found.fmr == pytest.approx(fmr, abs=1e-4)
    assert found.fnmr == pytest.approx(fnmr, abs=2e-3)
    assert 0.0095 < found.fmr <= 0.01
    assert found.fmr_interval[0] < found.fmr < found.fmr_interval[1]
    assert found.fnmr_interval[0] <= found.fnmr <= found.fnmr_interval[1]
    lower, _ = brute_rates(vectors, classes, similarity, found.threshold - 0.05)
    assert lower > 0.01  # a lower threshold would let more than that pass


def test_the_interval_covers_the_rate_of_other_classes_about_as_often_as_it_says():
    """Classes are drawn anew for each trial: the rate at the threshold of all of them lies within."""
    rng = np.random.default_rng(0)

    def sample(classes: int) -> tuple[np.ndarray, np.ndarray]:
        centres = rng.normal(size=(classes, DIM))
        codes = np.repeat(np.arange(classes), 4)
        points = centres[codes] + 0.5 * rng.normal(size=(len(codes), DIM))
        return prepared(points.astype(np.float32), "cosine"), codes

    large, codes = sample(500)
    inside = 0
    for _ in range(20):
        vectors, classes = sample(40)
        found = calibrating.calibrate(vectors, classes, "cosine", 0.02, "x", lambda s: None)
        _, truth = brute_rates(large[:1200], codes[:1200], "cosine", found.threshold)
        inside += found.fnmr_interval[0] <= truth <= found.fnmr_interval[1]
    assert inside >= 14


def test_too_few_pairs_for_a_rate_are_told():
    vectors, labels = vectors_of(20)
    _, classes = np.unique(labels, return_inverse=True)
    with pytest.raises(RunError, match="cannot be told from"):
        calibrating.calibrate(vectors, classes, "cosine", 1e-4, "x", lambda s: None)
    with pytest.raises(RunError, match="no two images of one class"):
        calibrating.calibrate(vectors, np.arange(20), "cosine", 0.1, "x", lambda s: None)


def test_of_many_images_whole_classes_are_drawn():
    classes = np.repeat(np.arange(3000), 4)
    kept = calibrating.drawn(classes)
    assert len(kept) <= calibrating.MOST
    assert (np.bincount(classes[kept])[np.unique(classes[kept])] == 4).all()


# -- servers


@pytest.fixture(params=["milvus", "qdrant"])
def server(request, tmp_path) -> list[str]:
    pytest.importorskip({"milvus": "milvus_lite", "qdrant": "qdrant_client"}[request.param])
    address = tmp_path / ("images.db" if request.param == "milvus" else "qdrant")
    return [f"store={request.param}", f"address={address}", "collection=birds"]


def test_a_server_finds_what_a_directory_finds(server, folder, bundle, tmp_path):
    words = [f"encoder={bundle}", f"images={folder}"]
    command.run([*words, f"out={tmp_path / 'ix'}"])
    assert command.run([*words, f"out={tmp_path / 'served'}", *server]) == 0
    here, there = open_index(tmp_path / "ix"), open_index(tmp_path / "served")
    queries = here.vectors([0, 5])
    for where in (None, "wren"):
        ours, theirs = here.hits(queries, 3, where), there.hits(queries, 3, where)
        assert [[hit.path for hit in hits] for hits in ours] == [
            [h.path for h in hits] for hits in theirs
        ]
        for a, b in zip(ours[0], theirs[0], strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-5)
    assert there.row_of(folder / "wren" / "1.png") is not None
    assert len(there) == 8
    exclude = np.array([there.row_of(folder / "crow" / "0.png"), -1])
    assert there.search(queries, 3, exclude=exclude)[1][0, 0] != exclude[0]
    there.close()


def test_a_server_takes_and_gives_up_images(server, folder, bundle, tmp_path):
    out = f"out={tmp_path / 'ix'}"
    command.run([f"encoder={bundle}", f"images={folder}", out, *server])
    shutil.copytree(folder / "wren", folder / 'it\'s "an" owl')
    assert command.run([f"add={folder}", out]) == 0
    assert command.run(["remove=crow", out]) == 0
    assert command.run([f"calibrate={tmp_path / 'ix'}", "fmr=0.25"]) == 0
    index = open_index(tmp_path / "ix")
    assert len(index) == 8
    vector = index.vectors([index.row_of(folder / "wren" / "0.png")])
    hits = index.hits(vector, 8)[0]
    assert {hit.label for hit in hits} == {"wren", 'it\'s "an" owl'}
    assert hits[0].same is not None
    assert index.hits(vector, 9, where='it\'s "an" owl')[0][0].score == pytest.approx(1, abs=1e-5)
    assert index.hits(vector, 9, where="crow")[0] == []
    index.close()
    assert command.run([f"check={tmp_path / 'ix'}"]) == 0


def test_a_server_that_is_not_there_is_told(tmp_path, folder, bundle):
    words = [f"encoder={bundle}", f"images={folder}", f"out={tmp_path / 'ix'}"]
    with pytest.raises(RunError, match=r"qdrant at http://127\.0\.0\.1:9 fails"):
        command.run([*words, "store=qdrant", "address=http://127.0.0.1:9"])
    assert not files.exists(tmp_path / "ix")


def test_the_command_says_how_it_is_used(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dml-index", "--help"])
    with pytest.raises(SystemExit) as caught:
        cli.index()
    assert caught.value.code == 0
    assert "images=DIR" in capsys.readouterr().out


def test_wrong_words_are_told_without_torch_or_faiss():
    code = (
        "import sys\nfrom dml.index import command, search_command\n"
        "from dml.errors import ConfigurationError\n"
        "for run in (command.run, search_command.run):\n"
        "    try: run(['images=/nowhere', 'indx=3'])\n"
        "    except ConfigurationError: pass\n"
        "    else: raise SystemExit('accepted')\n"
        "print(sorted({'torch', 'faiss', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "[]", done.stderr
