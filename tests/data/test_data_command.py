"""`dml-data`: its words, and prepare, check and show from an archive as published to the pictures."""

import gzip
import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import archives
import pytest
from PIL import Image

from dml import cli, data_command
from dml.data.fetch import manifest
from dml.data.fetch.download import RemoteFile
from dml.data.sets import cars196, cub200, inshop
from dml.errors import ConfigurationError, RunError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(monkeypatch):
    """The miniature counts of tests/data/archives.py in place of the published ones."""
    for module in (cub200, inshop):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "COUNTS", archives.SMALL[name])


@pytest.fixture
def cub(tmp_path, small, monkeypatch) -> Path:
    """A directory into which a person has put the archive of CUB-200-2011."""
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "made").mkdir()
    archive = archives.pack(archives.cub200(tmp_path / "made"), root / "CUB_200_2011.tgz")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cub200, "FILES", (RemoteFile(archive.name, md5=digest),))
    return root


def problems(*words: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigurationError) as caught:
        data_command.run(list(words))
    return [(problem.where, problem.what) for problem in caught.value.problems]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path, with its size and the time of its last change."""
    found = {str(path): path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prepare=cub20"], [("prepare=cub20", "there is no data set 'cub20'. Did you mean prepare=cub20")]),
        (
            ["chek=cub200"],
            [("chek=cub200", "is no option of dml-data. Did you mean check?"), ("dml-data", "what")],
        ),
        (["show=cub200", "rot=x"], [("rot=x", "is no option of dml-data. Did you mean root?")]),
        (["root=x"], [("dml-data", "what is to be done? See dml-data --help.")]),
        (["check=cub200", "show=sop"], [("show=sop", "check=... is asked for already.")]),
        (["check=cub200", "out=x"], [("out=x", "belongs to show=... alone. Drop it.")]),
        (["check=cub200", "data.rot=x"], [("data.rot=x", "data has no option 'rot'. Did you mean data")]),
        (["check=folder"], [("data.root", "has no value. Add data.root=...")]),
        (["check=cub200", "data.protocol=kfold"], [("data.fold", "has no value. Add data.fold=0")]),
        (
            ["prepare=sop", "data.halves=maybe", "size=9", "data.val_fraction=2"],
            [
                ("size=9", "is no option of dml-data."),
                ("data.halves=maybe", "Value 'maybe' is not a valid bool"),
                ("data.val_fraction=2", "must lie in [0, 1)."),
            ],
        ),
    ],
)  # fmt: skip
def test_wrong_words_are_all_told(words, told):
    """As for training: what was typed, what is wrong, what was probably meant."""
    found = problems(*words)
    assert [where for where, _ in found] == [where for where, _ in told]
    for (_, what), (_, begins) in zip(found, told, strict=True):
        assert what.startswith(begins)


def ended(*words: str) -> tuple[str, str]:
    """What a process of its own prints: its last line, with exit code and whether torch was imported."""
    code = (
        f"import sys; sys.argv = {['dml-data', *words]}\n"
        "from dml.cli import data\n"
        "try: data()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1], done.stderr


def test_wrong_words_and_checks_import_no_torch(tmp_path, make_image):
    """Two seconds to be told of a typo are a second too many."""
    last, told = ended("prepare=cub20", "rot=x")
    assert (last, told.splitlines()[0]) == ("2 False", "2 problems in the configuration")
    for name in "abcd":
        make_image(tmp_path / name / "1.png")
    last, _ = ended("prepare=folder", f"root={tmp_path}", "data.val_fraction=0")
    assert last == "0 False"


def test_no_words_print_the_help(capsys):
    assert data_command.run([]) == 2
    assert data_command.run(["--help"]) == 0
    assert capsys.readouterr().out.count("dml-data prepare=cub200 root=DIR") == 2


def test_doctor_has_its_own_words(monkeypatch):
    from dml.data.doctor import command as doctor

    asked = []
    monkeypatch.setattr(doctor, "run", lambda words: asked.append(words) or 1)
    assert data_command.run(["doctor", "root=x"]) == 1
    assert asked == [["root=x"]]


def test_prepare_from_the_archive_then_check_then_show(cub, capsys, caplog, tmp_path):
    """The published split is what is printed, not one that a protocol divided for training."""
    assert data_command.run(["prepare=cub200", f"root={cub}"]) == 0
    printed = capsys.readouterr().out
    head, _, train, test, *_ = printed.splitlines()
    assert head == f"cub200: 59 images of 14 classes in {cub / 'CUB_200_2011'}"
    assert train.split() == ["train", "33", "8", "4", "4", "5"]
    assert test.split() == ["test", "26", "6", "4", "4", "5"]
    assert "train  first  images/001.Bird_0/Bird_0000_0.jpg  (001.Bird_0)" in printed
    assert "test   last   images/014.Bird_6/Bird_0058_1798.jpg  (014.Bird_6)" in printed
    before = state(cub)

    with caplog.at_level(logging.INFO, "dml"):
        assert data_command.run(["check=cub200", f"root={cub}"]) == 0
    assert "Every image is as recorded" in caplog.text
    assert capsys.readouterr().out == printed
    assert state(cub) == before

    out = tmp_path / "pictures"
    assert data_command.run(["show=cub200", f"root={cub}", f"out={out}"]) == 0
    assert capsys.readouterr().out.startswith(printed)
    assert sorted(path.name for path in out.iterdir()) == [
        "cub200_class_sizes.png",
        "cub200_images.png",
    ]
    for path in out.iterdir():
        with Image.open(path) as picture:
            picture.load()
    assert state(cub) == before


def test_prepare_again_touches_nothing(cub):
    data_command.run(["prepare=cub200", f"root={cub}"])
    before = state(cub)
    (cub / "CUB_200_2011.tgz").write_bytes(b"no longer needed, and no longer read")
    before[str(cub / "CUB_200_2011.tgz")] = state(cub)[str(cub / "CUB_200_2011.tgz")]
    data_command.run(["prepare=cub200", f"root={cub}"])
    assert state(cub) == before


def damage(cub: Path) -> dict[str, str]:
    """Damage three images, each in its own way; image -> what check says of it."""
    images = sorted((cub / "CUB_200_2011" / "images").glob("*/Bird*.jpg"))
    data = images[0].read_bytes()
    images[0].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    size = images[9].stat().st_size
    images[9].write_bytes(images[9].read_bytes()[: size // 2])
    images[20].write_bytes(b"")
    says = ["its content has changed", f"has {size // 2:,} bytes, not {size:,}", "has 0 bytes"]
    names = [images[n].relative_to(cub / "CUB_200_2011").as_posix() for n in (0, 9, 20)]
    return dict(zip(names, says, strict=True))


def test_check_lists_damaged_images_and_prepare_mends_them(cub, capsys):
    data_command.run(["prepare=cub200", f"root={cub}"])
    right = {path: path.read_bytes() for path in cub.rglob("*") if path.is_file()}
    damaged = damage(cub)
    before = state(cub)
    with pytest.raises(RunError) as caught:
        data_command.run(["check=cub200", f"root={cub}"])
    message = str(caught.value)
    assert message.startswith(f"3 images differ from {cub / 'cub200.manifest.csv.gz'}:")
    for name, what in damaged.items():
        assert f"  {name}: {what}" in message
    assert state(cub) == before
    data_command.run(["prepare=cub200", f"root={cub}"])
    assert {path: path.read_bytes() for path in cub.rglob("*") if path.is_file()} == right


def test_check_names_missing_images(cub):
    data_command.run(["prepare=cub200", f"root={cub}"])
    gone = next((cub / "CUB_200_2011" / "images").glob("*/Bird*.jpg"))
    gone.unlink()
    with pytest.raises(RunError, match="1 of 59 images are missing") as caught:
        data_command.run(["check=cub200", f"root={cub}"])
    assert gone.name in str(caught.value)


def test_a_half_unpacked_directory_is_never_taken_for_the_set(cub):
    """Someone unpacked by hand and stopped; the archive is still there, so prepare completes it."""
    archives.cub200(cub)
    for path in sorted((cub / "CUB_200_2011" / "images").glob("*/Bird*.jpg"))[30:]:
        path.unlink()
    with pytest.raises(RunError, match="29 of 59 images are missing"):
        data_command.run(["check=cub200", f"root={cub}"])
    assert not (cub / "cub200.manifest.csv.gz").exists()
    assert data_command.run(["prepare=cub200", f"root={cub}"]) == 0
    assert len(list((cub / "CUB_200_2011" / "images").glob("*/Bird*.jpg"))) == 59


def test_a_label_that_changed_is_damage_too(cub):
    """Two images whose classes are exchanged keep every count and every byte."""
    folder = cub / "CUB_200_2011"
    data_command.run(["prepare=cub200", f"root={cub}"])
    images, labels = folder / "images.txt", folder / "image_class_labels.txt"
    first, last = "001.Bird_0/Bird_0000_0.jpg", "014.Bird_6/Bird_0058_1798.jpg"
    for old, new in ((first, last), (last, first)):
        moved = folder / "images" / new.split("/")[0] / old.split("/")[1]
        (folder / "images" / old).rename(moved)
    text = images.read_text()
    swapped = ["014.Bird_6/Bird_0000_0.jpg", "001.Bird_0/Bird_0058_1798.jpg"]
    images.write_text(text.replace(first, swapped[1]).replace(last, swapped[0]))
    assert labels.read_text().startswith("1 1\n")
    with pytest.raises(RunError) as caught:
        data_command.run(["check=cub200", f"root={cub}"])
    assert f"images/{first}: is no longer listed" in str(caught.value)
    assert f"images/{swapped[0]}: is not in the record" in str(caught.value)


def test_check_without_a_record_says_what_it_cannot_say(cub, caplog):
    archives.cub200(cub)
    before = state(cub)
    with caplog.at_level(logging.INFO, "dml"):
        assert data_command.run(["check=cub200", f"root={cub}"]) == 0
    assert "There is no record to compare" in caplog.text
    assert "dml-data prepare=cub200 makes one" in caplog.text
    assert state(cub) == before


def test_check_of_nothing_is_a_wrong_command_line(tmp_path):
    [(where, what)] = problems("check=cub200", f"root={tmp_path / 'none'}")
    assert where == f"data.root={tmp_path / 'none'}"
    assert "there is no" in what


def test_in_shop_asks_for_its_files_and_takes_them(tmp_path, small, capsys):
    """It has a form, hence no address; queries and gallery are told apart in what is printed."""
    root = tmp_path / "data"
    [(where, what)] = problems("prepare=inshop", f"root={root}")
    assert where == "prepare=inshop"
    assert what.startswith(f"cannot be fetched without you.\nPut into {root}, then run")
    assert "  img.zip  (no checksum is published)" in what
    assert "  list_eval_partition.txt  (no checksum is published)" in what
    assert not root.exists()

    root.mkdir()
    made = archives.inshop(tmp_path / "made", images="img", lists="")
    (made / "list_eval_partition.txt").rename(root / "list_eval_partition.txt")
    archives.pack(made, root / "img.zip")
    assert data_command.run(["prepare=inshop", f"root={root}"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split()[:3] for line in printed.splitlines()[2:5]]
    assert rows == [["train", "33", "8"], ["query", "13", "6"], ["gallery", "20", "6"]]


def test_cars_names_every_form_it_is_found_in(tmp_path):
    """Its hosts are gone: what is asked for are names and checksums, for the forms in circulation."""
    [(_, what)] = problems("prepare=cars196", f"root={tmp_path / 'data'}")
    for file in cars196.FILES:
        asked = f"  {file.name}  ({file.facts()})" in what
        assert asked == (not file.urls)
    assert what.count("or, instead:") == 2


def test_the_users_own_images_can_be_recorded_checked_and_shown(
    tmp_path, make_image, caplog, capsys
):
    root = tmp_path / "mine"
    for n in range(8):
        for copy in range(3):
            make_image(root / f"class{n}" / f"{copy}.png")
    words = [f"data.root={root}", "data.val_fraction=0"]
    assert data_command.run(["prepare=folder", *words]) == 0
    make_image(root / "class3" / "new.png")
    with pytest.raises(RunError, match="1 image differs") as caught:
        data_command.run(["check=folder", *words])
    assert "class3/new.png: is not in the record" in str(caught.value)
    assert data_command.run(["show=folder", *words, f"out={tmp_path}"]) == 0
    assert (tmp_path / "folder_images.png").is_file()


def test_names_with_brackets_are_printed_as_they_are(tmp_path, make_image, capsys):
    """The tables are drawn by a library that takes [red] for an order."""
    names = ("[red]", "[bold]", "[1]", "[link=x]")
    for name in names:
        make_image(tmp_path / "[mine]" / name / "1.png")
    words = [f"root={tmp_path / '[mine]'}", "data.val_fraction=0"]
    assert data_command.run(["check=folder", *words]) == 0
    printed = capsys.readouterr().out
    assert f"in {tmp_path / '[mine]'}" in printed
    shown = [line.split(None, 2)[2] for line in printed.splitlines() if "1.png" in line]
    assert sorted(shown) == sorted(f"{name}/1.png  ({name})" for name in names)


def test_the_embedded_glyphs_are_shown(glyphs_root, tmp_path, capsys):
    assert data_command.run(["show=glyphs", f"root={glyphs_root}", f"out={tmp_path}"]) == 0
    assert "val       400       20" in capsys.readouterr().out
    assert not list(glyphs_root.glob("*.csv.gz"))


def test_pictures_that_cannot_be_written_are_told(cub, tmp_path):
    archives.cub200(cub)
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(RunError, match=r"cannot write .*file/cub200_images\.png"):
        data_command.run(["show=cub200", f"root={cub}", f"out={tmp_path / 'file'}"])


def test_a_manifest_is_the_same_each_time_and_can_be_read_by_anyone(cub):
    data_command.run(["prepare=cub200", f"root={cub}"])
    record = cub / "cub200.manifest.csv.gz"
    first = record.read_bytes()
    record.unlink()
    data_command.run(["prepare=cub200", f"root={cub}"])
    assert record.read_bytes() == first
    header, row, *_ = gzip.decompress(first).decode().splitlines()
    path = cub / "CUB_200_2011" / "images" / "001.Bird_0" / "Bird_0000_0.jpg"
    data = path.read_bytes()
    assert header == "path,class,bytes,md5"
    assert row == (
        f"images/001.Bird_0/{path.name},001.Bird_0,{len(data)},{hashlib.md5(data).hexdigest()}"
    )


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"a,b\n1,2\n"), gzip.compress(b"")],
    ids=["no gzip", "another table", "empty"],  # gzip notes the time, and a name must not change
)
def test_a_damaged_manifest_is_told(cub, content):
    archives.cub200(cub)
    (cub / "cub200.manifest.csv.gz").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        data_command.run(["check=cub200", f"root={cub}"])


def test_the_command_ends_with_its_code(cub, monkeypatch):
    """2 for what was typed, 1 for what was found, 130 for Ctrl-C."""

    def code(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dml-data", *words])
        with pytest.raises(SystemExit) as end:
            cli.data()
        return int(end.value.code or 0)

    assert code("prepare=cub200", f"root={cub}") == 0
    damage(cub)
    assert code("check=cub200", f"root={cub}") == 1
    assert code("check=cub200", "rot=x") == 2

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("dml.data.fetch.prepare.fetch", stopped)
    assert code("prepare=cub200", f"root={cub}") == 130


def test_sizes_that_cannot_be_read_are_differences_not_crashes(cub):
    """An image that vanishes between the listing and the comparison."""
    data_command.run(["prepare=cub200", f"root={cub}"])
    index = cub200.load(root=str(cub))
    gone = index.root / index.paths[0]
    gone.unlink()
    found = manifest.differences(index, cub / "cub200.manifest.csv.gz")
    assert found == [f"{index.paths[0]}: is missing"]
