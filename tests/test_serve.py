"""dml-search serve=true: what it finds, what it refuses, and what nobody can read through it.

A real HTTP client against a real server on a port of its own.
"""

import io
import logging
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from bundles import tiny_bundle
from PIL import Image

from dml import load_encoder
from dml.errors import ConfigurationError, RunError
from dml.index import command, open_index, search_command
from dml.serve import app as serve_app
from dml.serve.batching import Batcher, Closed
from dml.serve.options import OPTIONS, Options
from dml.serve.service import Service

PER_CLASS = 5
CLASSES = ("<b>wren</b>".replace("/", "\N{FRACTION SLASH}"), "crow", "owl & co")
SECRET = b"nobody may read this"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """encoder/, images/ of three classes, ix/, and a secret beside them."""
    top = tmp_path_factory.mktemp("serve")
    tiny_bundle(top / "encoder")
    (top / "secret.txt").write_bytes(SECRET)
    rng = np.random.default_rng(0)
    for name in CLASSES:
        folder = top / "images" / name
        folder.mkdir(parents=True)
        for number in range(PER_CLASS):
            small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(small).resize((90, 70)).save(folder / f"{number}.png")
    command.run([f"encoder={top / 'encoder'}", f"images={top / 'images'}", f"out={top / 'ix'}"])
    return top


@pytest.fixture(scope="module")
def encoder(place):
    return load_encoder(place / "encoder")


@dataclass
class Running:
    url: str
    service: Service
    client: httpx.Client


@contextmanager
def running(index, encoder, **values):
    """A server with these options, in a thread, and a client of it."""
    options = Options(port=0, **values)
    listening = serve_app.bound(options)
    app = serve_app.create_app(index, encoder, options)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = serve_app.address(listening)
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            for _ in range(500):
                if server.started:
                    break
                time.sleep(0.01)
            yield Running(url, app.state.service, client)
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()
        assert not app.state.service.batcher._thread.is_alive()


@pytest.fixture(scope="module")
def server(place, encoder):
    index = open_index(place / "ix")
    with running(index, encoder) as found:
        yield found
    index.close()


@pytest.fixture
def client(server) -> httpx.Client:
    return server.client


def png(width: int = 40, height: int = 30, seed: int = 9) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    return data.getvalue()


def upload(client: httpx.Client, data: bytes, **values) -> httpx.Response:
    return client.post("/api/search", files={"image": ("a.png", data)}, data=values)


def error_of(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    return response.json()["error"]


# -- what it finds


def test_an_upload_finds_what_the_index_finds(place, server, encoder):
    file = place / "images" / "crow" / "3.png"
    answer = upload(server.client, file.read_bytes(), k=4).json()
    [wanted] = server.service.index.hits(encoder([file]).numpy(), 4)
    assert [hit["row"] for hit in answer["results"]] == [hit.row for hit in wanted]
    assert [hit["score"] for hit in answer["results"]] == pytest.approx([h.score for h in wanted])
    first = answer["results"][0]
    assert (first["path"], first["label"], first["rank"]) == ("crow/3.png", "crow", 1)
    assert first["score"] == pytest.approx(1, abs=1e-5)
    assert first["same"] is None  # not calibrated
    assert answer["similarity"] == "cosine"
    assert server.client.get(first["image"]).content == file.read_bytes()


def test_a_row_finds_others_than_itself(server):
    index = server.service.index
    for row in (0, 7):
        answer = server.client.get(f"/api/items/{row}/similar", params={"k": 100}).json()
        rows = [hit["row"] for hit in answer["results"]]
        assert sorted([*rows, row]) == list(range(len(index)))
        scores = [hit["score"] for hit in answer["results"]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("label", CLASSES)
def test_one_class_alone(client, label):
    answers = [
        upload(client, png(), k=50, label=label),
        client.get("/api/items/0/similar", params={"k": 50, "label": label}),
    ]
    for answer, own in zip(answers, (0, label == CLASSES[0]), strict=True):
        labels = [hit["label"] for hit in answer.json()["results"]]
        assert labels == [label] * (PER_CLASS - own)


def test_labels_and_health(server):
    assert server.client.get("/api/labels").json() == {"labels": sorted(CLASSES)}
    health = server.client.get("/api/health").json()
    assert (health["status"], health["images"]) == ("ok", 3 * PER_CLASS)
    assert health["encoder"] == server.service.encoder.fingerprint


def test_thumbnails_are_small_and_known_to_the_client(client):
    first = client.get("/api/images/2", params={"size": "thumbnail"})
    assert first.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(first.content)).size) <= 240
    again = client.get(
        "/api/images/2",
        params={"size": "thumbnail"},
        headers={"If-None-Match": first.headers["etag"]},
    )
    assert (again.status_code, again.content) == (304, b"")


def test_the_first_frame_of_an_animation_counts(client):
    frames = [Image.open(io.BytesIO(png(seed=seed))) for seed in (1, 2)]
    moving, still = io.BytesIO(), io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    frames[0].save(still, "GIF")
    found = [upload(client, data.getvalue()).json() for data in (moving, still)]
    assert found[0] == found[1]


def test_removed_images_and_files_that_are_gone(place, encoder, tmp_path):
    shutil.copytree(place / "images", tmp_path / "images")
    words = [
        f"encoder={place / 'encoder'}",
        f"images={tmp_path / 'images'}",
        f"out={tmp_path / 'ix'}",
    ]
    command.run(words)
    command.run(["remove=crow/0.png", f"out={tmp_path / 'ix'}"])
    index = open_index(tmp_path / "ix")
    removed = next(n for n in range(len(index) + 1) if n not in {i.row for i in items(index)})
    gone = index.row_of(tmp_path / "images" / "crow" / "1.png")
    (tmp_path / "images" / "crow" / "1.png").unlink()
    spoiled = index.row_of(tmp_path / "images" / "crow" / "2.png")
    (tmp_path / "images" / "crow" / "2.png").write_bytes(SECRET)
    with running(index, encoder) as server:
        for address in (f"/api/items/{removed}/similar", f"/api/images/{removed}"):
            assert server.client.get(address).status_code == 404
        for row in (gone, spoiled):
            for size in ("full", "thumbnail"):
                answer = server.client.get(f"/api/images/{row}", params={"size": size})
                assert answer.status_code == 404
                assert f"number {row}" in error_of(answer)
        hits = server.client.get(f"/api/items/{gone}/similar?k=50").json()["results"]
        assert removed not in [hit["row"] for hit in hits]
        page = server.client.get("/", params={"row": gone})
        assert (page.status_code, "no picture any more" in page.text) == (200, True)
    index.close()


def items(index):
    found = []
    for row in range(3 * PER_CLASS):
        try:
            found += index.items([row])
        except ValueError:
            continue
    return found


# -- what it refuses


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"plain text, whatever its name says", "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        (png()[:200], "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as an image"),
    ],
    ids=["text", "empty", "truncated", "postscript"],
)
def test_what_is_no_image_is_told(client, data, what):
    answer = upload(client, data)
    assert answer.status_code == 422
    assert what in error_of(answer)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises this many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (8_000, 7_000)])
def test_too_many_pixels_are_never_decoded(client, width, height, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    answer = upload(client, bomb(width, height))
    assert answer.status_code == 422
    assert "pixels" in error_of(answer)


def test_a_line_is_not_blown_up(client):
    """One pixel by 30,000: the shorter side resized to 72 pixels would make it 155 million."""
    answer = upload(client, png(30_000, 1))
    assert answer.status_code == 422
    assert "too narrow" in error_of(answer)
    assert upload(client, png(300, 10)).status_code == 200


def test_large_requests_are_refused_by_header_and_by_what_arrives(place, encoder):
    index = open_index(place / "ix")
    with running(index, encoder, max_upload_mb=0.1) as server:
        assert upload(server.client, png()).status_code == 200
        told = upload(server.client, bytes(200_000))
        assert told.status_code == 413
        assert "larger than 0.1 MB" in error_of(told)
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        chunks = [head, *[bytes(10_000)] * 20, b"\r\n--x--\r\n"]
        form = {"content-type": "multipart/form-data; boundary=x"}
        for address in ("/api/search", "/"):
            untold = server.client.post(address, content=iter(chunks), headers=form)
            assert "content-length" not in untold.request.headers
            assert untold.status_code == 413
            assert "larger than 0.1 MB" in error_of(untold)
    index.close()


def test_endless_headers_are_cut_off(server):
    """No byte of the body has come yet, so that the limits of the body say nothing."""
    host, port = re.fullmatch(r"http://(.*):(\d+)", server.url).groups()
    with socket.create_connection((host, int(port)), 10) as line:
        sent, answer = 0, b""
        try:
            line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
            while sent < 4 << 20:
                sent += line.send(b"x" * 65536)
            answer = line.recv(1000)
        except (ConnectionResetError, BrokenPipeError):
            pass  # it hung up
    assert sent < 4 << 20 or answer.startswith(b"HTTP/1.1 4") or answer == b""
    assert server.client.get("/api/labels").status_code == 200


def test_a_form_of_thousands_of_fields_is_refused(server):
    """Small in bytes, and much to take apart."""
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for address in ("/api/search", "/"):
        answer = server.client.post(address, content=part * 3000 + b"--x--", headers=headers)
        assert 400 <= answer.status_code < 500
        assert "<html" in answer.text or error_of(answer)
    assert server.client.get("/api/labels").status_code == 200


def test_slow_answers_and_slow_uploads_end(place, encoder, monkeypatch):
    index = open_index(place / "ix")
    open_gate = threading.Event()
    with running(index, encoder, timeout=2) as server:  # a busy machine answers within it, too
        embed = server.service.batcher._embed
        monkeypatch.setattr(
            server.service.batcher, "_embed", lambda pixels: open_gate.wait(20) and embed(pixels)
        )
        answer = upload(server.client, png())
        assert answer.status_code == 504
        assert "within 2 s" in error_of(answer)
        open_gate.set()
        host, port = re.fullmatch(r"http://(.*):(\d+)", server.url).groups()
        with socket.create_connection((host, int(port)), 10) as line:
            line.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            assert line.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert upload(server.client, png()).status_code == 200
    index.close()


def test_more_requests_than_it_takes(place, encoder, monkeypatch):
    index = open_index(place / "ix")
    gate = threading.Event()
    with running(index, encoder, max_requests=2) as server, ThreadPoolExecutor(2) as pool:
        embed = server.service.batcher._embed
        monkeypatch.setattr(
            server.service.batcher, "_embed", lambda pixels: gate.wait(20) and embed(pixels)
        )
        waiting = [
            pool.submit(upload, httpx.Client(base_url=server.url, timeout=60), png())
            for _ in range(2)
        ]
        for _ in range(500):
            answer = server.client.get("/api/labels")
            if answer.status_code == 503:
                break
            time.sleep(0.01)
        assert "Try again" in error_of(answer)
        assert answer.headers["retry-after"] == "1"
        gate.set()
        assert [done.result().status_code for done in waiting] == [200, 200]
        assert server.client.get("/api/labels").status_code == 200
    index.close()


@pytest.mark.parametrize(
    ("address", "status", "what"),
    [
        ("/api/items/15/similar", 404, "no image number 15"),
        ("/api/items/-1/similar", 422, "greater than or equal to 0"),
        (f"/api/items/{2**63}/similar", 422, "row"),
        (f"/api/items/{2**63 - 1}/similar", 404, "no image number"),
        ("/api/items/0/similar?k=0", 422, "k: "),
        ("/api/items/0/similar?k=201", 422, "k: "),
        ("/api/items/0/similar?label=sparrow", 422, "no class 'sparrow'"),
        ("/api/images/99", 404, "no image number 99"),
        ("/api/images/-1", 422, "row"),
        ("/api/images/0?size=huge", 422, "size"),
        ("/api/nothing", 404, "Not Found"),
        ("/api/search", 405, "Method Not Allowed"),
    ],
)
def test_wrong_requests_are_told(client, address, status, what):
    answer = client.get(address)
    assert answer.status_code == status
    assert what in error_of(answer)


def test_a_request_without_an_image_is_told(client):
    answer = client.post("/api/search", data={"k": 3})
    assert answer.status_code == 422
    assert "image: Field required" in error_of(answer)


@pytest.mark.parametrize(
    "path",
    [
        "/api/images/../../secret.txt",
        "/api/images/..%2f..%2fsecret.txt",
        "/api/images/%2e%2e/%2e%2e/secret.txt",
        "/api/images/..%5c..%5csecret.txt",
        "/api/images/crow/0.png",
        "/api/images/%00",
        "/static/../../../../secret.txt",
        "/static/..%2f..%2f..%2fsecret.txt",
        "/static/%2e%2e/app.py",
        "/static//etc/hostname",
        "/static/{top}/secret.txt",
        "/%2e%2e/secret.txt",
    ],
)
def test_no_path_leads_out(server, place, path):
    """Sent as they are: httpx would tidy them up."""
    host, port = re.fullmatch(r"http://(.*):(\d+)", server.url).groups()
    with socket.create_connection((host, int(port)), 10) as line:
        target = path.replace("{top}", str(place))
        line.sendall(
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: line.recv(1 << 16), b""))
    assert re.match(rb"HTTP/1.1 4(04|22|05|00) ", answer)
    assert SECRET not in answer


def test_a_link_that_leads_out_is_not_followed(place, encoder, tmp_path):
    """Indexed as an image, later replaced by a link to something else."""
    shutil.copytree(place / "images", tmp_path / "images")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "outside.png")
    words = [
        f"encoder={place / 'encoder'}",
        f"images={tmp_path / 'images'}",
        f"out={tmp_path / 'ix'}",
    ]
    command.run(words)
    file = tmp_path / "images" / "crow" / "0.png"
    index = open_index(tmp_path / "ix")
    row = index.row_of(file)
    file.unlink()
    file.symlink_to(tmp_path / "outside.png")
    with running(index, encoder) as server:
        for size in ("full", "thumbnail"):
            answer = server.client.get(f"/api/images/{row}", params={"size": size})
            assert answer.status_code == 404
    index.close()


def test_a_foreign_name_for_this_machine_is_refused(client):
    """DNS rebinding: a page elsewhere whose name has come to mean 127.0.0.1."""
    answer = client.get("/api/labels", headers={"Host": "evil.example:80"})
    assert answer.status_code == 400
    assert "Host" in error_of(answer)
    assert client.get("/api/labels", headers={"Host": "localhost:99"}).status_code == 200


def test_a_mistake_of_ours_is_logged_and_not_shown(server, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("the inner workings")

    monkeypatch.setattr(server.service.index, "search", broken)
    answer = server.client.get("/api/items/0/similar")
    assert answer.status_code == 500
    assert "inner workings" not in error_of(answer)
    assert "the inner workings" in caplog.text


def test_another_encoder_is_refused(place, tmp_path):
    other = load_encoder(tiny_bundle(tmp_path / "other", seed=1))
    with pytest.raises(RunError, match="built by another encoder"):
        serve_app.create_app(open_index(place / "ix"), other)


# -- batches


def test_concurrent_requests_are_embedded_together_and_get_their_own(place, encoder):
    index = open_index(place / "ix")
    files = [place / "images" / "crow" / f"{n}.png" for n in range(PER_CLASS)] * 4
    with running(index, encoder, batch_wait_ms=200, max_batch=64) as server:
        with ThreadPoolExecutor(len(files)) as pool:
            answers = list(
                pool.map(lambda file: upload(server.client, file.read_bytes(), k=1), files)
            )
        found = [answer.json()["results"][0]["path"] for answer in answers]
        assert found == [f"crow/{file.name}" for file in files]
        assert server.service.batcher.images == len(files)
        assert server.service.batcher.batches <= len(files) // 4
        assert server.client.get("/api/health").json()["batches"] == server.service.batcher.batches
    index.close()


def test_batches_are_no_larger_than_asked_and_in_order():
    sizes = []

    def embed(pixels):
        sizes.append(len(pixels))
        return pixels.float().mean((1, 2, 3))[:, None]

    batcher = Batcher(embed, most=4, wait=0.05)
    futures = [batcher.submit(torch.full((3, 2, 2), n, dtype=torch.uint8)) for n in range(10)]
    assert [future.result(10)[0] for future in futures] == list(range(10))
    assert max(sizes) <= 4
    assert sum(sizes) == batcher.images == 10
    batcher.close()
    with pytest.raises(Closed):
        batcher.submit(torch.zeros(3, 2, 2, dtype=torch.uint8))


def test_a_failed_batch_is_told_to_each_and_the_next_works():
    broken = threading.Event()
    broken.set()

    def embed(pixels):
        if broken.is_set():
            raise RuntimeError("out of memory")
        return torch.zeros(len(pixels), 1)

    batcher = Batcher(embed, most=4, wait=0.05)
    pixels = torch.zeros(3, 2, 2, dtype=torch.uint8)
    for future in [batcher.submit(pixels), batcher.submit(pixels)]:
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result(10)
    broken.clear()
    assert batcher.submit(pixels).result(10).shape == (1,)
    batcher.close()


def test_cancelled_images_are_not_embedded_and_closing_frees_who_waits():
    gate, sizes = threading.Event(), []

    def embed(pixels):
        gate.wait(10)
        sizes.append(len(pixels))
        return torch.zeros(len(pixels), 1)

    batcher = Batcher(embed, most=1, wait=0.001)
    pixels = torch.zeros(3, 2, 2, dtype=torch.uint8)
    first = batcher.submit(pixels)
    while not first.running():
        time.sleep(0.001)
    cancelled, waiting = batcher.submit(pixels), batcher.submit(pixels)
    assert cancelled.cancel()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closed:
        time.sleep(0.001)
    gate.set()
    closing.join(10)
    assert first.result(1).shape == (1,)
    with pytest.raises(Closed):
        waiting.result(1)
    assert sizes == [1]


# -- the page


def test_the_page_works_without_script(client, place):
    begin = client.get("/")
    assert begin.status_code == 200
    assert 'href="/?row=0"' in begin.text
    assert "<b>wren" not in begin.text  # a class name is text
    data = (place / "images" / "crow" / "3.png").read_bytes()
    files = {"image": ("<i>mine</i>.png", data)}
    found = client.post("/", files=files, data={"label": "crow", "k": "12"})
    assert found.status_code == 200
    assert "5 nearest of crow" in found.text
    assert "<i>mine" not in found.text
    assert '<option value="crow" selected>' in found.text
    row = client.get("/?row=3&label=crow")
    assert "5 nearest of crow" in row.text
    moved = client.post("/", files={"image": ("", b"")}, data={"row": "3", "label": "crow"})
    assert moved.status_code == 303
    assert moved.headers["location"] == "/?row=3&label=crow"


def test_the_page_tells_errors(client):
    bad = client.post("/", files={"image": ("a.jpg", b"text")})
    assert bad.status_code == 422
    assert re.search(r'role="alert">This cannot be read as an image', bad.text)
    assert client.get("/?row=999").status_code == 404
    assert "no class" in client.get("/?label=<script>").text
    assert "<script>" not in client.get("/?label=<script>").text


def test_every_response_has_the_headers_that_keep_strangers_out(client):
    for answer in (client.get("/"), client.get("/api/images/0"), client.get("/static/search.js")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "//" not in re.sub(r'xmlns="[^"]*"', "", client.get("/").text.replace("<!doctype", ""))


# -- the command


def test_loopback_unless_told_otherwise():
    assert Options().host == "127.0.0.1"
    assert OPTIONS["host"][1] == "127.0.0.1"
    assert list(OPTIONS) == [field.name for field in fields(Options)]
    with serve_app.bound(Options(port=0)) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_the_documentation_tells_the_defaults():
    text = (Path(__file__).parents[1] / "docs" / "search.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", text, re.MULTILINE)
    assert told == [
        (name, f"{default:.12g}" if isinstance(default, float) else str(default), help)
        for name, (_, default, help) in OPTIONS.items()
    ]


def test_an_address_that_cannot_be_had_is_told(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [f"index={place / 'ix'}", "serve=true", f"port={port}"]
        with pytest.raises(ConfigurationError, match=r"port=0 takes one that is free"):
            search_command.run(words)
    with pytest.raises(ConfigurationError, match="no address"):
        search_command.run([f"index={place / 'ix'}", "serve=true", "host=no.such.host.invalid"])


@pytest.mark.parametrize("word", ["port=70000", "timeout=0", "max_upload_mb=many", "max_batch=0"])
def test_wrong_options_are_told(place, word):
    with pytest.raises(ConfigurationError, match=re.escape(word)):
        search_command.run([f"index={place / 'ix'}", "serve=true", word])


@pytest.mark.slow  # two processes that import torch
def test_it_stops_cleanly_by_ctrl_c_and_by_sigterm(place):
    code = "from dml.cli import search; search()"
    words = [sys.executable, "-c", code, f"index={place / 'ix'}", "serve=true", "port=0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    stops = (signal.SIGINT, signal.SIGTERM)
    processes = [subprocess.Popen(words, **pipes) for _ in stops]
    try:
        for process, stop in zip(processes, stops, strict=True):
            url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline()).group()
            transport = httpx.HTTPTransport(retries=8)
            with httpx.Client(transport=transport, base_url=url, timeout=300) as client:
                assert client.get("/api/health").status_code == 200
            process.send_signal(stop)
            rest, _ = process.communicate(timeout=300)
            assert (process.returncode, rest.strip()) == (0, "Stopped.")
    finally:
        for process in processes:
            process.kill()
            process.wait()


# -- by its own description


def test_the_api_keeps_to_its_description(server):
    """Requests made up from the OpenAPI description, right and wrong ones, and every answer as described."""
    schemathesis = pytest.importorskip("schemathesis", reason="API NOT TESTED: no schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    logging.getLogger("httpx").setLevel(logging.WARNING)
    schema = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json")
    held = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.unsupported_method,
    ]
    tested = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def fits(case):
            case.call_and_validate(checks=held)

        fits()
        tested.append(operation.label)
    assert tested == [
        "POST /api/search",
        "GET /api/items/{row}/similar",
        "GET /api/images/{row}",
        "GET /api/labels",
        "GET /api/health",
    ]


# -- in a browser


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("PAGE NOT TESTED IN A BROWSER: there is no chromium (apt-get install chromium)")
    sync = pytest.importorskip("playwright.sync_api", reason="PAGE NOT TESTED: no playwright")
    with sync.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def view(browser, server):
    """The page; at the end nothing may have been logged, and nothing asked of another server."""
    heard: list[str] = []
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on(
        "request", lambda r: r.url.startswith((server.url + "/", "data:")) or heard.append(r.url)
    )
    page.goto(server.url)
    page.heard = heard
    yield page
    context.close()
    assert heard == []


def labels_shown(view) -> list[str]:
    return view.locator("#results .tile strong").all_inner_texts()


@pytest.mark.slow
def test_upload_filter_and_click_in_a_browser(view, place, server):
    view.set_input_files("#image", place / "images" / "crow" / "3.png")
    view.wait_for_selector("#found")
    assert view.inner_text("#found") == "12 nearest"
    assert labels_shown(view)[0] == "crow"
    assert view.inner_text("#status") == "12 nearest"  # said aloud
    view.evaluate("document.querySelector('.query img').decode()")
    view.evaluate("document.querySelector('.tile img').decode()")
    view.select_option("#label", "owl & co")  # the upload is kept
    view.locator("#found", has_text="owl").wait_for()
    assert labels_shown(view) == ["owl & co"] * PER_CLASS
    assert view.evaluate("document.documentElement.scrollWidth") <= 390
    view.click(".tile >> nth=1")
    view.wait_for_url(re.compile(r"\?row=\d+&label=owl"))
    assert view.inner_text("#found") == f"{PER_CLASS - 1} nearest of owl & co"
    view.select_option("#label", "")  # of a row: by the address, which can be kept
    view.wait_for_url(re.compile(r"\?row=\d+$"))
    assert view.inner_text("#found") == "12 nearest"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["drop", "paste"])
def test_drop_and_paste_in_a_browser(view, place, way):
    data = list((place / "images" / "crow" / "2.png").read_bytes())
    view.evaluate(
        """([way, data]) => {
            const given = new DataTransfer();
            given.items.add(new File([new Uint8Array(data)], "crow.png", {type: "image/png"}));
            const event = way === "drop"
                ? new DragEvent("drop", {dataTransfer: given, bubbles: true, cancelable: true})
                : new ClipboardEvent("paste", {clipboardData: given, bubbles: true, cancelable: true});
            document.body.dispatchEvent(event);
        }""",
        [way, data],
    )
    view.wait_for_selector("#found")
    assert labels_shown(view)[0] == "crow"
    assert view.locator(".query .caption").inner_text() == "crow.png"


@pytest.mark.slow
def test_the_keyboard_is_enough_in_a_browser(view):
    seen = []
    for _ in range(12):
        view.keyboard.press("Tab")
        seen.append(view.evaluate("document.activeElement.id || document.activeElement.className"))
        if seen[-1] == "tile":
            break
    assert seen[0] == "skip"
    assert [name for name in seen if name in ("image", "label", "k", "tile")] == [
        "image",
        "label",
        "k",
        "tile",
    ]
    view.keyboard.press("Enter")
    view.wait_for_url(re.compile(r"\?row=0"))
    assert view.inner_text("#found") == "12 nearest"


@pytest.mark.slow
def test_what_is_no_image_is_told_in_a_browser(view, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    view.set_input_files("#image", tmp_path / "text.jpg")
    view.wait_for_selector("[role=alert]")
    assert "cannot be read as an image" in view.inner_text("[role=alert]")
    view.heard[:] = [text for text in view.heard if "status of 422" not in text]  # Chromium's own
