"""Archives come from elsewhere: what leaves the directory, links, devices, bombs, truncation, full disks.

After every refusal the whole tree, in and around the directory, is as it was before.
"""

import errno
import gzip
import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from random import Random

import pytest

from dml.data.fetch import archives
from dml.errors import RunError

GOOD = {"set/a/1.jpg": b"one", "set/b/2.jpg": b"two", "notes.txt": b"stray"}


@pytest.fixture
def root(tmp_path) -> Path:
    """A data directory with a neighbour that an archive could harm."""
    (tmp_path / "neighbour.txt").write_text("mine")
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, and the content of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def write_tar(path: Path, files: dict[str, bytes], *odd: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = info(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in odd:
            tar.addfile(member)
    return path


def write_zip(path: Path, files: dict[str, bytes], *odd: zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for member in odd:
            archive.writestr(member, b"/etc/passwd")
    return path


def refused(archive: Path) -> str:
    """The message; nothing in or around the directory has changed."""
    around = archive.parent.parent
    before = tree(around)
    with pytest.raises(RunError) as caught:
        archives.extract(archive)
    assert tree(around) == before
    return str(caught.value)


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_files_and_directories_arrive(root, write):
    archive = write(root / ("x.tgz" if write is write_tar else "x.zip"), GOOD)
    packed = archive.read_bytes()
    archives.extract(archive)
    folders = {"set": None, "set/a": None, "set/b": None}
    assert tree(root) == GOOD | folders | {archive.name: packed}


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize(
    "name", ["../neighbour.txt", "/tmp/x", "set/../../neighbour.txt", "C:/x", "..\\x", "a\\..\\x"]
)
def test_paths_outside_are_refused(root, write, name):
    """Also where harmless members come first: those are taken back."""
    archive = write(root / "x", GOOD | {name: b"harm"})
    assert "outside" in refused(archive)


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        (info("set/link", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (info("set", tarfile.SYMTYPE, ".."), "a link"),
        (info("set/hard", tarfile.LNKTYPE, "set/a/1.jpg"), "a link"),
        (info("set/null", tarfile.CHRTYPE), "a device"),
        (info("set/disk", tarfile.BLKTYPE), "a device"),
        (info("set/pipe", tarfile.FIFOTYPE), "a device"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(root, member, kind):
    message = refused(write_tar(root / "x.tgz", GOOD, member))
    assert kind in message
    assert repr(member.name) in message


def test_a_link_in_a_zip_is_refused(root):
    link = zipfile.ZipInfo("set/link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    assert "a link, 'set/link'" in refused(write_zip(root / "x.zip", GOOD, link))


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_bombs_are_refused(root, write, monkeypatch):
    """Zeros shrink a thousandfold; the sizes that an archive declares are not asked."""
    monkeypatch.setattr(archives, "SLACK", 1000)
    archive = write(root / "x", {"set/a": b"harmless", "set/zeros": bytes(2_000_000)})
    assert archive.stat().st_size * archives.LARGEST_RATIO < 2_000_000
    assert "more than 20 times" in refused(archive)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_a_gigabyte_is_not_read(root, kind):
    """Zeros shrink a thousandfold, and a header's own content would be read in one piece, into memory."""
    claim = tarfile.TarInfo("claim")
    claim.type, claim.size = kind, 1 << 30
    archive = root / "x.tgz"
    with gzip.open(archive, "wb", compresslevel=1) as file:
        file.write(claim.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20))
    tracemalloc.start()
    try:
        assert "truncated or damaged (a header claims" in refused(archive)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_too_many_members_are_refused(root, monkeypatch):
    """A million empty files hold no bytes and fill a disk's tables all the same."""
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    assert "more than 2 members" in refused(write_tar(root / "x.tgz", GOOD))


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_a_truncated_archive_leaves_nothing(root, write):
    archive = write(root / "x.zip", {f"set/{n}": bytes([n]) * 4000 for n in range(50)})
    archive.write_bytes(archive.read_bytes()[: -archive.stat().st_size // 2])
    assert "truncated or damaged" in refused(archive)


def test_damage_within_a_zip_leaves_nothing(root):
    """The list of members is at the end and still whole; each member has its own checksum."""
    archive = root / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("set/a", b"first")
        file.writestr("set/b", b"second")
    archive.write_bytes(archive.read_bytes().replace(b"second", b"secund"))
    assert "truncated or damaged" in refused(archive)


def test_damage_within_a_tar_leaves_nothing(root):
    """Zeros in the middle are the end of a tar: what comes after them would be lost without a word."""
    random = Random(0)
    archive = write_tar(root / "x.tgz", {f"set/{n}": random.randbytes(5000) for n in range(40)})
    data = bytearray(archive.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    archive.write_bytes(data)
    assert "truncated or damaged" in refused(archive)


def test_an_encrypted_zip_says_what_to_do(root):
    archive = write_zip(root / "x.zip", {"set/a": b"secret"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the list of members
    archive.write_bytes(data)
    assert "encrypted" in refused(archive)


def test_a_file_that_is_no_archive_says_so(root):
    """What a host sends in place of the archive is often a page of HTML."""
    archive = root / "x.tgz"
    archive.write_text("<html>Quota exceeded</html>")
    assert "truncated or damaged" in refused(archive)


def test_a_full_disk_leaves_nothing(root, monkeypatch):
    archive, opened, real = write_tar(root / "x.tgz", GOOD), [], Path.open

    def nearly_full(path, mode="r", *args, **kwargs):
        if mode == "wb":
            opened.append(path)
            if len(opened) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", nearly_full)
    assert "No space left on device" in refused(archive)
    assert len(opened) == 2


def test_ctrl_c_leaves_nothing(root, monkeypatch):
    archive = write_tar(root / "x.tgz", GOOD)

    def stopped(archive, directory):
        (directory / "set").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "write_members", stopped)
    before = tree(root.parent)
    with pytest.raises(KeyboardInterrupt):
        archives.extract(archive)
    assert tree(root.parent) == before


def test_what_a_killed_process_left_is_removed(root):
    archive = write_tar(root / "x.tgz", GOOD)
    left = root / ".x.tgz.partial" / "set"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"ha")
    archives.extract(archive)
    assert not left.parent.exists()
    assert not (root / "set" / "half.jpg").exists()


def test_a_half_unpacked_directory_is_completed(root):
    """Files of the archive replace damaged ones; what else lies there stays, also a file at the top."""
    mine = {"set/a/1.jpg": b"damaged", "set/a/own.txt": b"mine", "notes.txt": b"also mine"}
    for name, content in mine.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    archives.extract(write_tar(root / "x.tgz", GOOD))
    found = {name: content for name, content in tree(root).items() if content is not None}
    del found["x.tgz"]
    assert found == mine | {"set/a/1.jpg": b"one", "set/b/2.jpg": b"two"}


def test_what_macos_leaves_in_archives_is_left_out(root):
    litter = {"set/a/._1.jpg": b"fork", "__MACOSX/set/a/._1.jpg": b"fork", "set/.DS_Store": b"x"}
    archives.extract(write_zip(root / "x.zip", GOOD | litter))
    assert {name for name, content in tree(root).items() if content is not None} == {*GOOD, "x.zip"}
