"""Makes data sets in the layouts their authors publish, with the traps that those have.

Each maker writes one data set below `root` and returns `root`, which is what data.root is set to:

    cub200(root)    cars196(root, layout="annos" | "devkit" | "kaggle")    sop(root)    inshop(root, ...)

counts: split -> (images, classes), by default SMALL[name]; OFFICIAL[name] is the published one.
linked=False writes small pictures that look alike within a class, some of them greyscale; linked=True
writes one picture and hard-links it, for data at official counts.  A test that loads SMALL data patches
the module's own counts: monkeypatch.setattr(cub200, "COUNTS", archives.SMALL["cub200"]).

`pack(folder, archive)` packs what a folder holds into a .tgz or .zip, as downloaded.
"""

import csv
import os
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Counts = Mapping[str, tuple[int, int]]

OFFICIAL: dict[str, Counts] = {
    "cub200": {"train": (5_864, 100), "test": (5_924, 100)},
    "cars196": {"train": (8_054, 98), "test": (8_131, 98)},
    "sop": {"train": (59_551, 11_318), "test": (60_502, 11_316)},
    "inshop": {"train": (25_882, 3_997), "query": (14_218, 3_985), "gallery": (12_612, 3_985)},
}
SMALL: dict[str, Counts] = {
    "cub200": {"train": (33, 8), "test": (26, 6)},
    "cars196": {"train": (33, 8), "test": (26, 6)},
    "sop": {"train": (33, 8), "test": (26, 6)},
    "inshop": {"train": (33, 8), "query": (13, 6), "gallery": (20, 6)},
}
LINKS = 60_000  # of one file; ext4 allows 65,000


class Pictures:
    """Writes the pictures of a data set."""

    def __init__(self, linked: bool):
        self.linked = linked
        self.first: Path | None = None
        self.folders: set[Path] = set()
        self.written = 0

    def put(self, path: Path, label: int) -> None:
        """Write a picture of class `label`, or link the one there is."""
        if path.parent not in self.folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.folders.add(path.parent)
        if self.linked and self.first is not None and self.written % LINKS:
            os.link(self.first, path)
        else:
            colour = np.random.default_rng(label).integers(40, 216, 3)
            noise = np.random.default_rng((label, self.written)).normal(0, 20, (32, 32, 3))
            picture = Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))
            picture = picture.convert("L") if self.written % 7 == 3 else picture
            picture.save(path, "JPEG")
            self.first = path
        self.written += 1


def labels_of(counts: Sequence[tuple[int, int]]) -> list[int]:
    """Labels 0, 0, 0, 1, 1, ... of all splits one after another, images spread evenly over classes."""
    labels: list[int] = []
    start = 0
    for images, classes in counts:
        labels += np.sort(np.arange(images) % classes + start).tolist()
        start += classes
    return labels


def text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cub200(root: Path, counts: Counts = SMALL["cub200"], linked: bool = False) -> Path:
    """CUB_200_2011/ and the stray attributes.txt beside it; `._` files; all ids from 1."""
    labels, pictures = labels_of([counts["train"], counts["test"]]), Pictures(linked)
    folder = root / "CUB_200_2011"
    names = [f"{label + 1:03}.Bird_{label % 7}" for label in range(max(labels) + 1)]
    paths = [f"{names[label]}/Bird_{n:04}_{n * 31}.jpg" for n, label in enumerate(labels)]
    for path, label in zip(paths, labels, strict=True):
        pictures.put(folder / "images" / path, label)
    (folder / "images" / names[0] / "._Bird_0000_0.jpg").write_bytes(b"what macOS leaves")
    (folder / "images" / ".DS_Store").write_bytes(b"and this")
    text(root / "attributes.txt", ["1 has_bill_shape::curved_(up_or_down)"])
    numbered = list(enumerate(zip(paths, labels, strict=True), 1))
    text(folder / "images.txt", [f"{n} {path}" for n, (path, _) in numbered])
    text(folder / "image_class_labels.txt", [f"{n} {label + 1}" for n, (_, label) in numbered])
    text(folder / "classes.txt", [f"{n} {name}" for n, name in enumerate(names, 1)])
    text(folder / "train_test_split.txt", [f"{n} {n % 2}" for n, _ in numbered])  # not DML's
    text(folder / "bounding_boxes.txt", [f"{n} 1.0 1.0 20.0 20.0" for n, _ in numbered])
    return root


RAM = "Ram C/V Cargo Van Minivan 2012"  # the class whose name has a slash


def cars196(
    root: Path,
    counts: Counts = SMALL["cars196"],
    linked: bool = False,
    layout: str = "annos",
) -> Path:
    """annos: car_ims/ and cars_annos.mat.  devkit: cars_train/, cars_test/, devkit/ and the labelled test
    annotations.  kaggle: class folders within car_data/car_data/, names.csv, anno_*.csv.

    Class names sort otherwise than the ids; in the last two an image's number says nothing of its class.
    """
    labels, pictures = labels_of([counts["train"], counts["test"]]), Pictures(linked)
    classes = max(labels) + 1
    names = [RAM if c == 1 else f"Make {classes - c:03} Sedan 2012" for c in range(classes)]
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    cut = round(len(labels) * 8_144 / 16_185)  # the official split, by images
    parts = {"train": shuffled[:cut], "test": shuffled[cut:]}
    box = (10, 10, 30, 30)
    if layout == "annos":
        rows = [(f"car_ims/{n:06}.jpg", *box, c + 1, n % 2) for n, c in enumerate(labels, 1)]
        for row in rows:
            pictures.put(root / row[0], row[5] - 1)
        fields = ("relative_im_path", *BOX, "class", "test")
        mat(root / "cars_annos.mat", {"annotations": (fields, rows), "class_names": names})
    elif layout == "devkit":
        for split, part in parts.items():
            rows = [(*box, c + 1, f"{n:05}.jpg") for n, c in enumerate(part, 1)]
            for row in rows:
                pictures.put(root / f"cars_{split}" / row[5], row[4] - 1)
            labelled = (*BOX, "class", "fname"), rows
            if split == "train":
                mat(root / "devkit" / "cars_train_annos.mat", {"annotations": labelled})
            else:
                mat(root / "cars_test_annos_withlabels.mat", {"annotations": labelled})
                bare = (*BOX, "fname"), [(*row[:4], row[5]) for row in rows]
                mat(root / "devkit" / "cars_test_annos.mat", {"annotations": bare})
        mat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    else:
        for split, part in parts.items():
            rows = [(f"{n:05}.jpg", *box, c + 1) for n, c in enumerate(part, 1)]
            for row in rows:
                name = names[row[5] - 1].replace("/", "-")
                folder = root / "car_data" / "car_data" / split / name
                pictures.put(folder / row[0], row[5] - 1)
            with (root / f"anno_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
        text(root / "names.csv", names)
    return root


BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def mat(path: Path, content: Mapping[str, object]) -> None:
    """Write a .mat file: (fields, rows) becomes a struct array, a list of words a cell array."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, value in content.items():
        if isinstance(value, list):
            arrays[name] = np.array([value], dtype=object)
        else:
            fields, rows = value
            array = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
            array[0] = [tuple(v if isinstance(v, str) else np.uint8(v) for v in r) for r in rows]
            arrays[name] = array
    savemat(path, arrays)


SUPERCLASSES = [
    *("bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle"),
    *("lamp", "mug", "sofa", "stapler", "table", "toaster"),
]


def sop(root: Path, counts: Counts = SMALL["sop"], linked: bool = False) -> Path:
    """Stanford_Online_Products/: ids from 1, those of the test classes go on after the training classes'."""
    labels, pictures = labels_of([counts["train"], counts["test"]]), Pictures(linked)
    folder, (images, classes) = root / "Stanford_Online_Products", counts["train"]
    starts = {"train": (0, classes), "test": (classes, counts["test"][1])}
    rows = {"train": [], "test": []}
    for n, label in enumerate(labels):
        split = "train" if n < images else "test"
        start, many = starts[split]
        group = (label - start) * len(SUPERCLASSES) // many
        path = f"{SUPERCLASSES[group]}_final/{111_000_000_000 + label}_{n}.JPG"
        pictures.put(folder / path, label)
        rows[split].append(f"{n + 1} {label + 1} {group + 1} {path}")
    header = "image_id class_id super_class_id path"
    for split, lines in rows.items():
        text(folder / f"Ebay_{split}.txt", [header, *lines])
    text(folder / "Ebay_info.txt", [header, *rows["train"], *rows["test"]])
    return root


def inshop(
    root: Path,
    counts: Counts = SMALL["inshop"],
    linked: bool = False,
    images: str = "Img/img",
    lists: str = "Eval",
) -> Path:
    """list_eval_partition.txt with ragged blanks, in `lists` ("" is beside the images); images in `images`
    (Img/img, img, Img/img_highres, img_highres). Items of training and test are mixed.
    """
    pictures, rows = Pictures(linked), []
    classes = counts["train"][1] + counts["query"][1]
    items = np.random.default_rng(0).permutation(np.arange(1, classes + 1)).tolist()
    for status, (number, many) in counts.items():
        chosen = items[: counts["train"][1]] if status == "train" else items[counts["train"][1] :]
        for n in range(number):
            item = chosen[n % many]
            below = f"{('MEN', 'WOMEN')[item % 2]}/Denim/id_{item:08}/{n:05}_{status[0]}_front.jpg"
            pictures.put(root / images / below, item)
            rows.append((f"img/{below}", f"id_{item:08}", status))
    lines = [f"{path:<70}{' ' * (len(item) % 3)} {item}   {status} " for path, item, status in rows]
    header = "image_name item_id evaluation_status"
    text(root / lists / "list_eval_partition.txt", [str(len(rows)), header, *sorted(lines)])
    return root


MAKERS = {"cub200": cub200, "cars196": cars196, "sop": sop, "inshop": inshop}


def pack(folder: Path, archive: Path) -> Path:
    """Everything that `folder` holds as a .tgz or .zip."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz") as file:
            for path in sorted(folder.iterdir()):
                file.add(path, path.name)
    return archive
