"""dml-data doctor: what it finds, what it does not, and what it says about it.

A finding that is missed costs the user a wrong number; a false one costs trust in all others.
"""

import itertools
import json
import os
import struct
import sys
from html.parser import HTMLParser
from multiprocessing import get_start_method
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin, TiffImagePlugin

from dml.data.decode import open_rgb
from dml.data.doctor import command as doctor
from dml.data.doctor import duplicates as doctor_duplicates
from dml.data.doctor import examine as doctor_image
from dml.data.doctor import page as doctor_page
from dml.data.doctor.examine import examine
from dml.data.doctor.findings import KIND, KINDS, all_findings
from dml.data.doctor.images import Labelled, from_directory, from_index
from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, RunError


def photo(seed: int, size=(96, 72)) -> Image.Image:
    """A picture with the smooth areas of a photograph; every seed another."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def grey16(mode_of_file: str) -> Image.Image:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    return Image.fromarray(values if mode_of_file == "I;16" else values.astype(np.int32))


def holes(color) -> Image.Image:
    """A photograph with a transparent corner."""
    image = photo(0).convert("RGBA")
    image.paste(color, (0, 0, 20, 20))
    return image


def rotated(image: Image.Image, orientation: int) -> Image.Exif:
    exif = image.getexif()
    exif[0x0112] = orientation
    return exif


def truncated(path: Path, share: float = 0.5) -> None:
    save(photo(0), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


WRITERS = {
    "sound.jpg": (lambda p: save(photo(0), p), set()),
    "sound.png": (lambda p: save(photo(0), p), set()),
    "sound.webp": (lambda p: save(photo(0), p), set()),
    "opaque.png": (lambda p: save(photo(0).convert("RGBA"), p), set()),
    "upright.jpg": (lambda p: save(photo(0), p, exif=rotated(photo(0), 1)), set()),
    "odd_tag.jpg": (lambda p: save(photo(0), p, exif=rotated(photo(0), 0)), set()),
    "capital.JPG": (lambda p: save(photo(0), p), set()),
    "text.jpg": (lambda p: p.write_text("<!DOCTYPE html><title>404</title>"), {"unreadable"}),
    "empty.png": (lambda p: p.touch(), {"unreadable"}),
    "half.jpg": (truncated, {"truncated"}),
    "half.png": (truncated, {"truncated"}),
    "most.jpg": (lambda p: truncated(p, 0.95), {"truncated"}),
    "grey.jpg": (lambda p: save(photo(0).convert("L"), p), {"greyscale"}),
    "lines.png": (lambda p: save(photo(0).convert("1"), p), {"greyscale"}),
    "print.jpg": (lambda p: save(photo(0).convert("CMYK"), p), {"cmyk"}),
    "few.gif": (lambda p: save(photo(0).convert("P"), p), {"palette"}),
    "few.png": (lambda p: save(photo(0).convert("P"), p), {"palette"}),
    "deep.png": (lambda p: save(grey16("I;16"), p), {"greyscale", "sixteen_bit"}),
    "deep.tif": (lambda p: save(grey16("I;16"), p), {"greyscale", "sixteen_bit"}),
    "deeper.tif": (lambda p: save(grey16("I"), p), {"greyscale", "sixteen_bit"}),
    "holes.png": (lambda p: save(holes((0, 0, 0, 0)), p), {"transparent"}),
    "glass.webp": (lambda p: save(holes((9, 9, 9, 99)), p, lossless=True), {"transparent"}),
    "film.gif": (
        lambda p: save(photo(0), p, save_all=True, append_images=[photo(1)]),
        {"palette", "animated"},
    ),
    "film.webp": (
        lambda p: save(photo(0), p, save_all=True, append_images=[photo(1)]),
        {"animated"},
    ),
    "stereo.jpg": (
        lambda p: save(photo(0), p, format="MPO", save_all=True, append_images=[photo(1)]),
        set(),
    ),
    "really_png.jpg": (lambda p: save(photo(0), p, format="PNG"), {"wrong_extension"}),
    "nameless": (lambda p: save(photo(0), p, format="PNG"), {"wrong_extension"}),
    "white.png": (lambda p: save(Image.new("RGB", (64, 64), "white"), p), {"blank"}),
    "dot.png": (lambda p: save(photo(0, (31, 40)), p), {"tiny"}),
    "ribbon.png": (lambda p: save(photo(0, (33, 133)), p), {"elongated"}),
    "square4.png": (lambda p: save(photo(0, (33, 132)), p), set()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_defect_is_found_and_no_other(tmp_path, name):
    write, expected = WRITERS[name]
    write(tmp_path / name)
    facts = examine(tmp_path / name)
    assert {kind for kind, _ in facts.defects} == expected
    assert facts.readable == (not expected & {"unreadable", "truncated"})
    assert all(detail for _, detail in facts.defects)


def test_details_say_what_the_file_is(tmp_path):
    """A failed download is recognised by its first bytes, a bad name by both formats."""
    for name, words in (
        ("text.jpg", "DOCTYPE html"),
        ("empty.png", "the file is empty"),
        ("half.jpg", "JPEG, 96 x 72"),
        ("really_png.jpg", "PNG content, extension .jpg"),
        ("nameless", "PNG content, extension none"),
        ("film.gif", "2 frames"),
        ("dot.png", "31 x 40"),
        ("holes.png", "6% of its pixels"),
    ):
        WRITERS[name][0](tmp_path / name)
        assert any(words in detail for _, detail in examine(tmp_path / name).defects), name
    assert examine(tmp_path / "gone.jpg").defects == (("unreadable", "No such file or directory"),)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_exif_rotation_is_what_training_ignores(tmp_path, orientation, ending):
    """The finding holds as long as open_rgb leaves the pixels as they are stored."""
    image = photo(0)
    exif = rotated(image, orientation)
    path = save(image, tmp_path / f"turned.{ending}", exif=exif)
    assert [kind for kind, _ in examine(path).defects] == ["exif_rotated"]
    assert open_rgb(path).size == image.size
    with Image.open(path) as stored:
        viewed = ImageOps.exif_transpose(stored).convert("RGB")
    assert viewed.tobytes() != open_rgb(path).tobytes()


def test_tiff_is_turned_by_pillow_itself(tmp_path):
    """No finding: what training sees is what a viewer shows."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = 6
    path = save(photo(0), tmp_path / "turned.tif", tiffinfo=tags)
    assert examine(path).defects == ()
    assert open_rgb(path).size == (72, 96)


def test_gigantic():
    """From the size alone: no test decodes 25 megapixels."""
    assert doctor_image.size_defects(5000, 5000) == []
    assert doctor_image.size_defects(5001, 5000) == [("gigantic", "5001 x 5000, 25 megapixels")]


def test_damaged_metadata_hides_no_image(tmp_path, monkeypatch):
    """Training reads such a file, so it is not called unreadable, whatever Pillow raises."""
    path = save(photo(0), tmp_path / "a.jpg")

    def getexif(_):
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "getexif", getexif)
    facts = examine(path)
    assert facts.readable
    assert facts.defects == (("metadata", "error: unpack requires a buffer of 2 bytes"),)


def test_processes_say_the_same_as_one(tmp_path, monkeypatch):
    paths = [save(photo(seed), tmp_path / f"{seed}.jpg") for seed in range(6)]
    paths.insert(2, tmp_path / "gone.jpg")
    alone = doctor_image.examine_all(paths, 1)
    monkeypatch.setattr(doctor_image, "FEW", 0)
    monkeypatch.setattr(doctor_image, "CHUNK", 2)
    assert doctor_image.examine_all(paths, 2) == alone
    assert [fact.readable for fact in alone] == [path.exists() for path in paths]


def die(_):
    os._exit(1)


@pytest.mark.skipif(get_start_method() != "fork", reason="the processes must know `die`")
def test_a_process_that_is_killed_is_an_error_of_the_run(tmp_path, monkeypatch):
    """The kernel does that where memory is short."""
    monkeypatch.setattr(doctor_image, "FEW", 0)
    monkeypatch.setattr(doctor_image, "examine", die)
    with pytest.raises(RunError, match="was killed"):
        doctor_image.examine_all([tmp_path], 2)


# Duplicates


def findings_of(root: Path):
    """(kind, paths) of everything found below a directory."""
    images = from_directory(str(root))
    facts = [examine(images.root / path) for path in images.paths]
    return [
        (f.kind.id, tuple(images.paths[i] for i in f.images)) for f in all_findings(images, facts)
    ]


def fill(root: Path, *classes: str, images: int = 2) -> int:
    """Different photographs for each class; returns the next free seed."""
    for seed, (name, i) in enumerate(itertools.product(classes, range(images)), 100):
        save(photo(seed), root / name / f"{i}.png")
    return 100 + len(classes) * images


def darker(image: Image.Image) -> Image.Image:
    return image.point(lambda value: value * 0.85)


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((2, 1, image.width - 2, image.height - 1))


COPIES = {
    "bytes": ("same", "copy.png", lambda image: image),
    "pixels": ("same", "copy.bmp", lambda image: image),
    "jpeg": ("similar", "copy.jpg", lambda image: image),
    "half": ("similar", "copy.jpg", lambda image: image.resize((48, 36))),
    "twice": ("similar", "copy.webp", lambda image: image.resize((192, 144))),
    "squeezed": ("similar", "copy.png", lambda image: image.resize((96, 96))),
    "darker": ("similar", "copy.png", darker),
    "cropped": ("similar", "copy.png", cropped),
}
PLACES = {
    ("train/a", "train/a"): ["in_class"],
    ("train/a", "train/b"): ["in_classes"],
    ("train/a", "test/c"): ["in_splits", "in_classes"],
    ("train/a", "test/a"): ["in_splits"],
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("places", PLACES)
def test_copies_are_found_where_they_are(tmp_path, copy, places):
    likeness, name, change = COPIES[copy]
    fill(tmp_path, "train/a", "train/b", "test/c", "test/a")
    one = save(photo(0), tmp_path / places[0] / "original.png")
    other = save(change(photo(0)), tmp_path / places[1] / name)
    pair = tuple(sorted(str(p.relative_to(tmp_path)) for p in (one, other)))
    found = [(kind, tuple(sorted(paths))) for kind, paths in findings_of(tmp_path)]
    assert found == [(f"{likeness}_{relation}", pair) for relation in PLACES[places]]


def test_of_identical_pictures_the_first_stands_for_all(tmp_path):
    """Else one copy that was saved again would be told as often as there are identical ones."""
    fill(tmp_path, "a", "b")
    for name in ("a/x1.png", "a/x2.png"):
        save(photo(0), tmp_path / name)
    save(photo(0), tmp_path / "b" / "x3.jpg")
    assert findings_of(tmp_path) == [
        ("similar_in_classes", ("a/x1.png", "b/x3.jpg")),
        ("same_in_class", ("a/x1.png", "a/x2.png")),
    ]


def test_severities_of_copies():
    """A certain leak or collision is an error; what a person must look at is a warning or a note."""
    severity = {kind.id: kind.severity for kind in KINDS}
    assert [severity[f"same_{r}"] for r in ("in_splits", "in_classes", "in_class")] == [
        "error",
        "error",
        "warning",
    ]
    assert [severity[f"similar_{r}"] for r in ("in_splits", "in_classes", "in_class")] == [
        "warning",
        "warning",
        "note",
    ]


def hue_turned(image: Image.Image) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point(lambda x: (x + 90) % 256)
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


DIFFERENT = {
    "another": lambda image: photo(1),
    "mirrored": ImageOps.mirror,
    "in another colour": hue_turned,
    "a detail": lambda image: image.crop((10, 8, 86, 64)),
}


@pytest.mark.parametrize("other", DIFFERENT)
def test_what_is_not_the_same_picture(tmp_path, other):
    fill(tmp_path, "a", "b")
    save(photo(0), tmp_path / "a" / "x.png")
    save(DIFFERENT[other](photo(0)), tmp_path / "b" / "x.png")
    assert findings_of(tmp_path) == []


def test_blank_pictures_are_not_like_each_other(tmp_path):
    """Their hashes are alike, whatever their colour."""
    fill(tmp_path, "a", "b")
    for name, color in (("a", "white"), ("b", "black")):
        save(Image.new("RGB", (64, 64), color), tmp_path / name / "x.png")
    assert [kind for kind, _ in findings_of(tmp_path)] == ["blank", "blank"]


def test_an_unreadable_file_has_no_copies(tmp_path):
    """It is an error already; two empty files are no label collision."""
    fill(tmp_path, "a", "b")
    for name in "ab":
        (tmp_path / name / "x.png").touch()
    assert [kind for kind, _ in findings_of(tmp_path)] == ["unreadable", "unreadable"]


def literal_groups(hashes: np.ndarray, small: np.ndarray) -> list[list[int]]:
    """Pairs by loops in float64, then groups by following them."""
    n = len(hashes)
    near: dict[int, set[int]] = {i: set() for i in range(n)}
    for i, j in itertools.combinations(range(n), 2):
        bits = sum(
            bin(int(a) ^ int(b)).count("1") for a, b in zip(hashes[i], hashes[j], strict=True)
        )
        if bits <= 48 and np.corrcoef(small[i].astype(float), small[j].astype(float))[0, 1] >= 0.95:
            near[i].add(j)
            near[j].add(i)
    groups, seen = [], set()
    for i in range(n):
        stack, group = [i], set()
        while stack:
            at = stack.pop()
            if at not in seen:
                seen.add(at)
                group.add(at)
                stack += near[at]
        if len(group) > 1:
            groups.append(sorted(group))
    return groups


@pytest.mark.parametrize("queries", [1, 7, 256])
def test_groups_equal_those_of_loops(monkeypatch, queries):
    """Also chains that run through several pieces of the search, and pairs at the very threshold."""
    monkeypatch.setattr(doctor_duplicates, "QUERIES", queries)
    monkeypatch.setattr(doctor_duplicates, "PAIRS", 3)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (40, 32), dtype=np.uint8)
    small = rng.integers(0, 256, (40, 768), dtype=np.uint8)
    for target, source, flipped in [(30, 2, 48), (9, 30, 48), (12, 2, 49), (39, 0, 20), (5, 39, 0)]:
        bits = np.unpackbits(hashes[source])
        bits[rng.choice(256, flipped, replace=False)] ^= 1
        hashes[target], small[target] = np.packbits(bits), small[source]
    hashes[20], small[20] = hashes[0], 7  # of one colour
    hashes[21] = hashes[0]  # the same hash, other colours
    groups = [group.tolist() for group in doctor_duplicates.similar(hashes, small)]
    assert groups == [[0, 5, 39], [2, 9, 30]]
    varied = np.delete(np.arange(40), 20)  # numpy's corrcoef is undefined for one colour
    expected = [varied[group].tolist() for group in literal_groups(hashes[varied], small[varied])]
    assert groups == expected


# Classes, files, splits


def test_classes_of_one_image_and_names_that_look_alike(tmp_path):
    seed = fill(tmp_path, "Crow", "Herring Gull", "Wren")
    save(photo(seed), tmp_path / "crow" / "a.png")
    save(photo(seed + 1), tmp_path / "Herring  Gull" / "a.png")
    assert findings_of(tmp_path) == [
        ("one_image", ("Herring  Gull/a.png",)),
        ("one_image", ("crow/a.png",)),
        ("alike_names", ("Crow/0.png", "crow/a.png")),
        ("alike_names", ("Herring  Gull/a.png", "Herring Gull/0.png")),
    ]


def test_files_that_are_not_read_are_listed(tmp_path):
    fill(tmp_path, "a", "b")
    (tmp_path / "a" / "x.heic").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "b" / ".hidden.jpg").touch()
    save(photo(0), tmp_path / "loose.png")
    images = from_directory(str(tmp_path))
    assert images.left_out == ["a/x.heic", "loose.png", "notes.txt"]
    (finding,) = all_findings(images, [examine(images.root / path) for path in images.paths])
    assert finding.kind.id == "left_out"
    assert finding.detail == "1 .heic, 1 .png, 1 .txt: a/x.heic, loose.png, notes.txt"


def test_what_training_would_refuse_is_examined(tmp_path):
    """A class in two splits, a single class: the doctor is for sets that are not in order yet."""
    fill(tmp_path, "train/a", "test/a")
    images = from_directory(str(tmp_path))
    assert (
        list(zip(images.classes, images.splits, strict=True))
        == [("a", "train")] * 2 + [("a", "test")] * 2
    )


def test_queries_and_gallery_are_told_apart(tmp_path):
    """In-Shop's two halves of the test split: a copy across them is found without being learnt."""
    index = ImageIndex(
        "inshop",
        tmp_path,
        np.array(["a", "b", "c", "d"]),
        np.array([0, 0, 1, 1]),
        ("x", "y"),
        {"train": np.array([0, 1]), "test": np.array([2, 3])},
        queries=np.array([False, False, True, False]),
    )
    images = from_index(index)
    assert images.splits == ["train", "train", "query", "gallery"]
    assert images.classes == ["x", "x", "y", "y"]


# The command


@pytest.fixture
def sick(tmp_path) -> Path:
    """A directory with a leak, a collision, a note and hostile names."""
    root = tmp_path / "sick"
    fill(root, "train/a", "train/b", "test/c", "test/d")
    save(photo(0), root / "train/a/x.png")
    save(photo(0), root / "test/c/x.png")
    save(photo(3).convert("L"), root / "test/d/grey.png")
    (root / "test/d/bad.jpg").write_text("nothing")
    return root


def report_of(words: list[str], out: Path) -> tuple[int, dict, str]:
    code = doctor.run([*words, f"out={out}"])
    return code, json.loads(out.with_suffix(".json").read_text()), out.read_text(encoding="utf-8")


def test_table_json_and_page_agree(sick, tmp_path, capsys):
    code, report, page = report_of([f"root={sick}"], tmp_path / "r.html")
    assert code == 1
    counts = {"unreadable": 1, "same_in_splits": 1, "same_in_classes": 1, "greyscale": 1}
    assert report["counts"] == counts
    assert (report["images"], report["classes"]) == (12, 4)
    assert [kind["id"] for kind in report["kinds"]] == list(counts)
    leak = next(f for f in report["findings"] if f["kind"] == "same_in_splits")
    assert leak == {
        "kind": "same_in_splits",
        "severity": "error",
        "detail": "identical files",
        "images": [
            {"path": "train/a/x.png", "class": "a", "split": "train"},
            {"path": "test/c/x.png", "class": "c", "split": "test"},
        ],
    }
    printed = " ".join(capsys.readouterr().out.split())
    assert "12 images of 4 classes: 3 errors, 1 note" in printed
    for kind in counts:
        assert KIND[kind].title in printed
        assert KIND[kind].meaning.split(".")[0] in page.replace("&#39;", "'")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json", "sick"]


def test_no_errors_exit_with_0(tmp_path):
    """Warnings and notes are there to be read; a script stops at errors alone."""
    root = tmp_path / "own"
    seed = fill(root, "a", "b")
    code, report, page = report_of([f"root={root}"], tmp_path / "r.html")
    assert (code, report["findings"]) == (0, [])
    assert "Nothing was found" in page
    save(photo(seed), root / "c" / "alone.png")
    assert report_of([f"root={root}"], tmp_path / "r.html")[0] == 0
    (root / "c" / "bad.png").touch()
    assert report_of([f"root={root}"], tmp_path / "r.html")[0] == 1


def test_a_data_set_by_its_options(tmp_path):
    fill(tmp_path, "a", "b", "c", "d", images=3)
    save(photo(0), tmp_path / "a" / "x.png")
    save(photo(0), tmp_path / "b" / "x.png")
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in tmp_path.glob("*/*.png")]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    for words in (
        ["data=csv", f"data.root={tmp_path}", "data.labels=labels.csv", "data.val_fraction=0"],
        ["data=folder", f"root={tmp_path}", "data.val_fraction=0"],
    ):
        code, report, _ = report_of(words, tmp_path / "r.html")
        assert code == 1
        assert report["counts"]["same_in_classes"] == 1
        assert {i["split"] for f in report["findings"] for i in f["images"]} <= {"train", "test"}


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["out=x.html"], "root", "which images?"),
        (["root=/nowhere/at/all"], "root=/nowhere/at/all", "there is no"),
        (["root={here}"], "root={here}", "holds no images"),
        (["root={here}", "out=x.json"], "out=x.json", "ends in .html"),
        (["root={here}", "out=gone/x.html"], "out=gone/x.html", "there is no directory"),
        (["rot={here}"], "rot={here}", "Did you mean root"),
        (["--fast"], "--fast", "is no option"),
        (["data.root={here}"], "data.root={here}", "Add data="),
        (["data=cvs", "root={here}"], "data=cvs", "Did you mean"),
        (["data=csv", "root={here}"], "data.labels", "has no value"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, words, where, what):
    """Said before any image is read, and nothing is written."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ConfigurationError) as caught:
        doctor.run([word.format(here=here) for word in words])
    problems = {p.where: p.what for p in caught.value.problems}
    assert what in problems[where.format(here=here)]
    assert list(here.iterdir()) == []


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigurationError) as caught:
        doctor.run(["root=/nowhere/at/all", "out=x.json", "fast=1"])
    assert [p.where for p in caught.value.problems] == [
        "fast=1",
        "out=x.json",
        "root=/nowhere/at/all",
    ]


def test_help_is_no_error(capsys):
    assert doctor.run(["--help"]) == 0
    assert "root=DIR" in capsys.readouterr().out
    assert doctor.run([]) == 2


# The page


class Page(HTMLParser):
    """Tags with attributes, and all text, as a browser would read them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


HOSTILE = [
    "<script>alert(1)<slash>",
    "\"><img src=x onerror='x'>",
    "{{ 7 * 7 }} & 'quotes'",
    "[bold red]éß鳥[slash]",
    "line\nbreak",
]


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot exist there")
def test_hostile_names_are_text(tmp_path, capsys):
    root = tmp_path / "<b>set"
    for seed, name in enumerate(HOSTILE):
        save(photo(seed).convert("L"), root / name / f"{name}.png")
    not_utf8 = os.fsdecode(b"\xff\xfe.png")
    save(photo(9).convert("L"), root / HOSTILE[0] / not_utf8)
    _, report, text = report_of([f"root={root}"], tmp_path / "r.html")
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"script", "b", "slash"} == set()
    assert all(set(a) <= {"class", "src", "alt", "width", "height"} for a in page.all("img"))
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,") for a in page.all("img"))
    for name in HOSTILE[:4]:
        assert f"{name}/{name}.png" in page.text
        assert any(f"{name}/{name}.png" in str(a["alt"]) for a in page.all("img"))
    assert "49 &" not in page.text
    assert "line\N{REPLACEMENT CHARACTER}break" in page.text
    assert "<b>set" in page.text
    paths = {image["path"] for finding in report["findings"] for image in finding["images"]}
    assert f"{HOSTILE[0]}/{not_utf8}" in paths
    assert "<b>set: 6 images" in " ".join(capsys.readouterr().out.split())


def test_a_class_name_with_a_slash(tmp_path):
    """Cars196 has `Ram C/V`; here from a labels file."""
    rows = ["path,label,class_name,split"]
    for seed in range(8):
        save(photo(seed).convert("L"), tmp_path / f"{seed}.png")
        rows.append(
            f"{seed}.png,{seed // 2},Ram C/V </td> {seed // 2},{'test' if seed > 3 else 'train'}"
        )
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    words = ["data=csv", f"root={tmp_path}", "data.labels=labels.csv", "data.val_fraction=0"]
    _, _, text = report_of(words, tmp_path / "r.html")
    assert Page(text).text.count("Ram C/V </td> 3") == 2


def test_the_page_can_be_used_without_eyes_or_mouse(sick, tmp_path):
    """Headings in order, names for regions and images, links that lead somewhere, nothing from outside."""
    page = Page(report_of([f"root={sick}"], tmp_path / "r.html")[2])
    tags = [tag for tag, _ in page.tags]
    assert page.all("html") == [{"lang": "en"}]
    assert (tags.count("h1"), tags.count("main"), tags.count("caption")) == (1, 1, 1)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(a["href"]) for a in page.all("a")]
    assert len(links) == 5  # to the findings, and to each of four kinds
    assert all(link.removeprefix("#") in ids for link in links)
    assert all(a["aria-labelledby"] in ids for a in page.all("section"))
    assert len(page.all("img")) == 5
    assert all(a["alt"] for a in page.all("img"))
    assert all(a.get("scope") == "col" for a in page.all("th"))
    assert "no picture" in page.text  # of the unreadable file
    assert not {"script", "link", "iframe"} & set(tags)


def test_a_group_shows_each_class_and_split(tmp_path):
    """Of many copies the one under another label must not be cut off."""
    fill(tmp_path, "train/a", "train/b", "test/c")
    for i in range(8):
        save(photo(0), tmp_path / f"train/a/copy{i}.png")
    save(photo(0), tmp_path / "train/b/z.png")
    save(photo(0), tmp_path / "test/c/z.png")
    _, report, text = report_of([f"root={tmp_path}"], tmp_path / "r.html")
    leak = report["findings"][0]
    assert (leak["kind"], len(leak["images"])) == ("same_in_splits", 10)
    shown = Page(text.split('id="same_in_splits"')[1].split("</section>")[0])
    assert [str(a["alt"]).split(",")[0] for a in shown.all("img")] == [
        "train/a/copy0.png",
        "train/b/z.png",
        "test/c/z.png",
        "train/a/copy1.png",
    ]
    assert "6 more images in the JSON file" in shown.text


def test_the_page_stays_small_and_counts_what_it_leaves_out(tmp_path):
    """Even if every section were full of noise, which JPEG cannot shrink."""
    rng = np.random.default_rng(0)
    for i in range(40):
        save(
            Image.fromarray(rng.integers(0, 256, (150, 150), np.uint8)), tmp_path / f"a/{i:02}.png"
        )
    images = from_directory(str(tmp_path))
    facts = [examine(tmp_path / path) for path in images.paths]
    findings = all_findings(images, facts)
    assert [finding.kind.id for finding in findings] == ["greyscale"] * 40
    assert doctor_page.write_page(images, findings, tmp_path / "r.html") == 8
    text = (tmp_path / "r.html").read_text()
    assert len(Page(text).all("img")) == 32
    assert "8 more are left out here" in Page(text).text
    assert len(text) * len(KINDS) < 10_000_000


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    images = Labelled("x", tmp_path, [], [], [])
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        doctor_page.write_page(images, [], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_birds(birds):
    """Real photographs: the four pairs that a person called the same picture, and nothing else."""
    paths = [
        f"{name}/{n:04}.jpg"
        for name, numbers in {
            "Bobolink": (26, 45),
            "Bronzed_Cowbird": (4, 58),
            "Hooded_Oriole": (14, 42),
            "Pigeon_Guillemot": (28, 43),
            "Eared_Grebe": (39, 0),  # 58 bits from Horned_Grebe/0035: other birds
            "Horned_Grebe": (35, 2),
        }.items()
        for n in numbers
    ]
    classes = [path.split("/")[0] for path in paths]
    images = Labelled("birds", birds / "images", paths, classes, [""] * len(paths))
    found = all_findings(images, [examine(images.root / path) for path in paths])
    assert [(f.kind.id, f.images) for f in found] == [
        ("similar_in_class", (i, i + 1)) for i in (0, 2, 4, 6)
    ]
