"""Fetching: interruptions, wrong and dead hosts, full disks; files that a person must bring.

A server of this process stands for the hosts.  After every failure there is the file or there is none:
what is not proven whole never has its name.
"""

import contextlib
import hashlib
import logging
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from dml.data.fetch import archives, download, prepare
from dml.data.fetch.download import RemoteFile, fetch
from dml.data.fetch.prepare import obtain
from dml.errors import ConfigurationError, RunError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HALF = len(CONTENT) // 2


class Site:
    """A host. files: path -> content.  cuts: path -> bytes after which the next answer breaks off.

    ranges: whether it continues downloads.  asked: (path, Range) of every request.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted))
        content = self.files.get(request.path)
        if content is None:
            return request.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if not self.ranges:
            start = 0
        elif start >= len(content):
            return request.send_error(416)
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        cuts = self.cuts.get(request.path)
        with contextlib.suppress(ConnectionError):  # a client that stopped reading
            request.wfile.write(content[start : cuts.pop(0) if cuts else len(content)])
        return None


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def remote(site: Site, *paths: str, **facts) -> RemoteFile:
    """The file `set.bin` of CONTENT, at these paths of the site."""
    known = {"md5": hashlib.md5(CONTENT).hexdigest(), "size": len(CONTENT)} | facts
    return RemoteFile("set.bin", urls=tuple(site.url + path for path in paths), **known)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def refused(file: RemoteFile, root: Path) -> str:
    with pytest.raises(RunError) as caught:
        fetch(file, root)
    return str(caught.value)


def test_a_file_arrives_under_its_own_name(site, tmp_path):
    site.files["/a"] = CONTENT
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    root = tmp_path / "new" / "folder"
    assert fetch(remote(site, "/a", sha256=sha256), root).read_bytes() == CONTENT
    assert names(root) == ["set.bin"]


def test_a_broken_connection_is_taken_up_where_it_broke(site, tmp_path):
    site.files["/a"], site.cuts["/a"] = CONTENT, [HALF, HALF + 200_000]
    assert fetch(remote(site, "/a"), tmp_path).read_bytes() == CONTENT
    starts = [int(asked.removeprefix("bytes=")[:-1]) if asked else 0 for _, asked in site.asked]
    assert len(starts) == 3
    assert 0 == starts[0] < HALF - download.CHUNK <= starts[1] <= HALF < starts[2]


def test_a_connection_that_brings_nothing_is_given_up(site, tmp_path):
    """Else a host that accepts and closes would be asked for ever."""
    site.files["/a"], site.cuts["/a"] = CONTENT, [0] * 9
    message = refused(remote(site, "/a"), tmp_path)
    assert f"{site.url}/a: " in message
    assert len(site.asked) == 1


def test_ctrl_c_leaves_a_part_and_the_next_call_continues(site, tmp_path, monkeypatch):
    site.files["/a"] = CONTENT

    @contextlib.contextmanager
    def stopping(description, total):
        def tell(done):
            if done >= HALF:
                raise KeyboardInterrupt

        yield tell

    with monkeypatch.context() as patch:
        patch.setattr(download, "byte_bar", stopping)
        with pytest.raises(KeyboardInterrupt):
            fetch(remote(site, "/a"), tmp_path)
    assert names(tmp_path) == ["set.bin.part"]
    kept = (tmp_path / "set.bin.part").stat().st_size
    assert HALF <= kept < len(CONTENT)
    assert fetch(remote(site, "/a"), tmp_path).read_bytes() == CONTENT
    assert site.asked[1:] == [("/a", f"bytes={kept}-")]
    assert names(tmp_path) == ["set.bin"]


def test_a_host_without_ranges_sends_all_again(site, tmp_path):
    site.files["/a"], site.cuts["/a"], site.ranges = CONTENT, [HALF], False
    assert fetch(remote(site, "/a"), tmp_path).read_bytes() == CONTENT
    assert len(site.asked) == 2


def test_a_part_of_another_file_is_found_out(site, tmp_path):
    """The checksum fails once; then the download begins anew, and the result is right."""
    site.files["/a"] = CONTENT
    (tmp_path / "set.bin.part").write_bytes(b"of an older version" * 100)
    assert fetch(remote(site, "/a"), tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in site.asked] == ["bytes=1900-", None]


def test_a_whole_part_is_not_fetched_again(site, tmp_path):
    """The process may have been killed between the last byte and the new name."""
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    site.files["/a"] = CONTENT
    assert fetch(remote(site, "/a"), tmp_path).read_bytes() == CONTENT
    assert site.asked == []
    (tmp_path / "set.bin").rename(tmp_path / "set.bin.part")  # and where its size is not known
    assert fetch(remote(site, "/a", size=None), tmp_path).read_bytes() == CONTENT
    assert site.asked == [("/a", f"bytes={len(CONTENT)}-")]


def test_without_a_checksum_nothing_is_continued(site, tmp_path):
    """Nothing could tell whether the two ends are of one file."""
    site.files["/a"] = CONTENT
    (tmp_path / "set.bin.part").write_bytes(b"?" * 1000)
    assert fetch(remote(site, "/a", md5=None), tmp_path).read_bytes() == CONTENT
    assert site.asked == [("/a", None)]


def test_a_wrong_checksum_is_no_file(site, tmp_path):
    site.files["/a"] = CONTENT[:-1] + b"?"
    message = refused(remote(site, "/a"), tmp_path)
    assert f"has md5 {hashlib.md5(site.files['/a']).hexdigest()}, not" in message
    assert names(tmp_path) == []


@pytest.mark.parametrize("sent", [CONTENT[:-1], CONTENT + b"?", b"<html>Quota exceeded</html>"])
def test_a_wrong_size_is_not_even_fetched(site, tmp_path, sent):
    site.files["/a"] = sent
    assert f"it offers {len(sent):,} bytes, not 1,048,576" in refused(remote(site, "/a"), tmp_path)
    assert names(tmp_path) == []


def test_the_second_address_is_asked_when_the_first_is_dead(site, tmp_path):
    site.files["/b"] = CONTENT
    assert fetch(remote(site, "/a", "/b"), tmp_path).read_bytes() == CONTENT
    assert [path for path, _ in site.asked] == ["/a", "/b"]


def test_the_second_address_continues_what_the_first_began(site, tmp_path):
    site.files["/a"] = site.files["/b"] = CONTENT
    site.cuts["/a"] = [HALF, 0]
    assert fetch(remote(site, "/a", "/b"), tmp_path).read_bytes() == CONTENT
    (_, first), (_, again), (path, other) = site.asked
    assert (first, path) == (None, "/b")
    assert again is not None
    assert again == other


def test_all_addresses_dead_says_what_to_bring(site, tmp_path):
    file = remote(site, "/a", "/b", by_hand="the authors, by letter")
    message = refused(file, tmp_path)
    assert message.splitlines() == [
        "set.bin could not be fetched:",
        f"  {site.url}/a: 404 Not Found",
        f"  {site.url}/b: 404 Not Found",
        f"Put set.bin at {tmp_path / 'set.bin'} (1,048,576 bytes, md5 {file.md5})",
        "  the authors, by letter",
    ]
    assert names(tmp_path) == []


def test_no_host_at_all_is_a_failed_address(tmp_path):
    """Nobody listens on that port: the next address is asked, and in the end a person."""
    file = RemoteFile("set.bin", urls=("http://127.0.0.1:9/set.bin",), size=9)
    assert "http://127.0.0.1:9/set.bin: ConnectionError" in refused(file, tmp_path)


def test_what_is_there_and_right_is_not_fetched(site, tmp_path):
    (tmp_path / "set.bin").write_bytes(CONTENT)
    fetch(remote(site, "/a"), tmp_path)
    assert site.asked == []


@pytest.mark.parametrize("there", [CONTENT[:-1], CONTENT[:-1] + b"?"])
def test_what_is_there_and_wrong_is_left_and_named(site, tmp_path, there):
    """It may be the user's only copy of something else."""
    (tmp_path / "set.bin").write_bytes(there)
    site.files["/a"] = CONTENT
    assert "it is damaged or another file.\nRemove it" in refused(remote(site, "/a"), tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == there


def test_a_full_disk_says_so_before_and_while_writing(site, tmp_path, monkeypatch):
    site.files["/a"] = CONTENT
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        message = refused(remote(site, "/a"), tmp_path)
    assert "has 1,000 bytes left, and 1,048,576 are needed" in message
    assert site.asked == []
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    (tmp_path / "set.bin.part").symlink_to("/dev/full")
    assert "No space left on device" in refused(remote(site, "/a"), tmp_path)
    assert not (tmp_path / "set.bin").exists()


def test_ctrl_c_says_that_the_same_command_goes_on(site, tmp_path, monkeypatch, caplog):
    def stopped(file, root):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "fetch", stopped)
    with caplog.at_level(logging.INFO, "dml"), pytest.raises(KeyboardInterrupt):
        obtain([remote(site, "/a")], tmp_path, "prepare=x")
    assert "The same command goes on where this one was stopped." in caplog.text


def packed(tmp_path: Path, name: str) -> bytes:
    """An archive that holds `<name>/1.jpg`."""
    folder = tmp_path / "made" / name
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(name.encode())
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as tar:
        tar.add(folder, name)
    return (tmp_path / "made.tgz").read_bytes()


def test_archives_are_unpacked_and_other_files_are_not(site, tmp_path):
    site.files["/a.tgz"], site.files["/list.mat"] = packed(tmp_path, "images"), b"list"
    files = [RemoteFile(path[1:], urls=(site.url + path,)) for path in site.files]
    root = tmp_path / "data"
    obtain(files, root, "prepare=x")
    assert names(root) == ["a.tgz", "images", "list.mat"]
    assert (root / "images" / "1.jpg").read_bytes() == b"images"


def test_no_archive_is_unpacked_before_all_are_there(site, tmp_path):
    """Half of a split would look like a set of its own."""
    site.files["/train.tgz"] = packed(tmp_path, "train")
    files = [RemoteFile(name, urls=(f"{site.url}/{name}",)) for name in ("train.tgz", "test.tgz")]
    with pytest.raises(RunError, match=r"test\.tgz could not be fetched"):
        obtain(files, tmp_path / "data", "prepare=x")
    assert names(tmp_path / "data") == ["train.tgz"]


TWO_FORMS = (
    RemoteFile("ims.tgz", md5="1" * 32, by_hand="a friend", packaging="one"),
    RemoteFile("annos.mat", md5="2" * 32, packaging="one"),
    RemoteFile("train.tgz", size=7_000, packaging="two"),
    RemoteFile("kit.tgz", urls=("http://127.0.0.1:9/kit.tgz",), packaging="two"),
)


def test_what_a_person_must_bring_is_listed_for_each_form(tmp_path):
    """Configuration, exit code 2: nothing went wrong, something is asked for."""
    root = tmp_path / "data"
    with pytest.raises(ConfigurationError) as caught:
        obtain(TWO_FORMS, root, "prepare=x")
    [problem] = caught.value.problems
    assert (problem.where, problem.what.splitlines()) == (
        "prepare=x",
        [
            "cannot be fetched without you.",
            f"Put into {root}, then run the same command again:",
            f"  ims.tgz  (md5 {'1' * 32})",
            "    a friend",
            f"  annos.mat  (md5 {'2' * 32})",
            "or, instead:",
            "  train.tgz  (7,000 bytes)",
        ],
    )
    assert not root.exists()


def test_the_form_that_was_brought_is_taken(site, tmp_path):
    """Its files are proven like fetched ones, and its other files are fetched."""
    site.files["/kit.tgz"] = packed(tmp_path, "kit")
    root = tmp_path / "data"
    root.mkdir()
    (root / "train.tgz").write_bytes(packed(tmp_path, "train"))
    brought = RemoteFile("train.tgz", size=(root / "train.tgz").stat().st_size, packaging="two")
    kit = RemoteFile("kit.tgz", urls=(f"{site.url}/kit.tgz",), packaging="two")
    obtain([*TWO_FORMS[:2], brought, kit], root, "prepare=x")
    assert names(root) == ["kit", "kit.tgz", "train", "train.tgz"]


def test_a_brought_file_that_is_another_is_refused(tmp_path):
    for file in TWO_FORMS[:2]:
        (tmp_path / file.name).write_bytes(b"another")
    with pytest.raises(RunError, match=f"not {'1' * 32}: it is damaged or another file"):
        obtain(TWO_FORMS, tmp_path, "prepare=x")
    assert names(tmp_path) == ["annos.mat", "ims.tgz"]


def test_every_archive_of_a_data_set_can_be_unpacked():
    """A name with an ending we do not know would be fetched and left as it is."""
    from dml.data.sets import cars196, cub200, inshop, sop

    listed = [file.name for module in (cub200, cars196, sop, inshop) for file in module.FILES]
    plain = [name for name in listed if not name.endswith(archives.ENDINGS)]
    assert set(plain) == {
        "cars_annos.mat",
        "cars_test_annos_withlabels.mat",
        "list_eval_partition.txt",
    }
