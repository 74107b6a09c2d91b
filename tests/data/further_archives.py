"""Makes the further data sets in the layouts their authors publish, with the traps that those have.

As in archives.py: each maker writes one data set below `root` and returns `root`.  SMALL[name] are the
default counts, with which a test patches the module's own COUNTS.
"""

import dataclasses
import gzip
import hashlib
import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from archives import Counts, Pictures, labels_of, text
from PIL import Image

SMALL: dict[str, Counts] = {
    "vehicleid": {"train": (33, 8), "small": (13, 3), "medium": (20, 5), "large": (26, 6)},
    "inat2018": {"train": (33, 8), "test": (26, 6)},
    "flowers102": {"all": (59, 7)},
    "ut_zappos50k": {"all": (59, 7)},
    "cifar10": {"train": (20, 4), "test": (20, 4)},
    "cifar100": {"train": (20, 4), "test": (20, 4)},
    "mnist": {"train": (20, 4), "test": (20, 4)},
    "omniglot": {"train": (32, 8), "test": (24, 6)},
}


def vehicleid(root: Path, counts: Counts = SMALL["vehicleid"], linked: bool = False) -> Path:
    """VehicleID_V1.0/: numbers of images with leading zeros, of vehicles without; a smaller test set is
    a part of the larger ones; vehicles of training and test are mixed, lines are in no order.
    """
    pictures, folder = Pictures(linked), root / "VehicleID_V1.0"
    vehicles = (np.random.default_rng(0).permutation(30_000) + 1).tolist()
    sizes = {"small": 800, "medium": 1600, "large": 2400}
    rows = {"train": labels_of([counts["train"]]), "small": labels_of([counts["small"]])}
    for smaller, larger in (("small", "medium"), ("medium", "large")):
        images, classes = counts[larger][0] - counts[smaller][0], counts[larger][1]
        new = np.arange(images) % (classes - counts[smaller][1]) + counts[smaller][1]
        rows[larger] = rows[smaller] + new.tolist()
    for part, labels in rows.items():
        training = part == "train"
        first, start = (1, 0) if training else (counts["train"][0] + 1, counts["train"][1])
        lines = [f"{n:07} {vehicles[start + label]}" for n, label in enumerate(labels, first)]
        np.random.default_rng(1).shuffle(lines)
        name = "train_list.txt" if training else f"test_list_{sizes[part]}.txt"
        text(folder / "train_test_split" / name, lines)
        if part in ("train", "large"):
            for n, label in enumerate(labels, first):
                pictures.put(folder / "image" / f"{n:07}.jpg", start + label)
    text(folder / "attribute" / "color_attr.txt", [f"{vehicle} 0" for vehicle in vehicles[:9]])
    return root


GROUPS = ("Plantae", "Aves", "Insecta")


def inat2018(root: Path, counts: Counts = SMALL["inat2018"], linked: bool = False) -> Path:
    """train_val2018/ and Smooth-AP's lists: categories are numbers that sort otherwise as words (9, 10), and
    those of training and test are mixed; images of both parts of the competition.
    """
    labels, pictures = labels_of([counts["train"], counts["test"]]), Pictures(linked)
    categories = np.random.default_rng(0).permutation(max(labels) + 1).tolist()
    paths = [
        f"train_val2018/{GROUPS[c % 3]}/{c}/{n * 2654435761 % 2**32:032x}.jpg"
        for n, c in enumerate(categories[label] for label in labels)
    ]
    for path, label in zip(paths, labels, strict=True):
        pictures.put(root / path, label)
    cut = counts["train"][0]
    for split, part in (("train", paths[:cut]), ("test", paths[cut:])):
        text(root / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt", part)
    return root


def flowers102(root: Path, counts: Counts = SMALL["flowers102"], linked: bool = False) -> Path:
    """flowers-102/jpg and imagelabels.mat, whose ids begin at 1 and are in no order; setid.mat, which is
    another split.
    """
    from scipy.io import savemat

    folder, pictures = root / "flowers-102", Pictures(linked)
    ids = np.random.default_rng(0).permutation(labels_of([counts["all"]])) + 1
    for n, label in enumerate(ids.tolist(), 1):
        pictures.put(folder / "jpg" / f"image_{n:05}.jpg", label)
    savemat(folder / "imagelabels.mat", {"labels": ids[None].astype(np.uint8)})
    savemat(folder / "setid.mat", {"trnid": np.arange(1, len(ids), 2)[None].astype(np.uint16)})
    return root


TYPES = [
    f"{category}/{kind}"
    for category, kinds in {
        "Boots": ("Ankle", "Knee High", "Mid-Calf", "Over the Knee", "Prewalker Boots"),
        "Sandals": ("Athletic", "Flat", "Heel"),
        "Shoes": (
            *("Boat Shoes", "Clogs and Mules", "Crib Shoes", "Firstwalker", "Flats", "Heels"),
            *("Loafers", "Oxfords", "Prewalker", "Sneakers and Athletic Shoes"),
        ),
        "Slippers": ("Boot", "Slipper Flats", "Slipper Heels"),
    }.items()
    for kind in kinds
]
BRANDS = ("Levi's&#174; Shoes", "Oh! Shoes", "Dolce & Gabbana", "L.A.M.B.")


def ut_zappos50k(
    root: Path,
    counts: Counts = SMALL["ut_zappos50k"],
    linked: bool = False,
    folder: str = "ut-zap50k-images",
) -> Path:
    """<folder>/<category>/<type>/<brand>/*.jpg: types with blanks, brands with odd characters."""
    labels, pictures = labels_of([counts["all"]]), Pictures(linked)
    types = TYPES[:: len(TYPES) // counts["all"][1]]
    for n, label in enumerate(labels):
        path = root / folder / types[label] / BRANDS[n % 4] / f"{8_000_000 + n}.{n % 99}.jpg"
        pictures.put(path, label)
    (root / folder / types[0] / BRANDS[0] / "._8000000.0.jpg").write_bytes(b"what macOS leaves")
    return root


def omniglot(root: Path, counts: Counts = SMALL["omniglot"], linked: bool = False) -> Path:
    """omniglot-py/: images of one bit; every alphabet has a character01."""
    stroke = io.BytesIO()
    Image.new("1", (105, 105), 1).save(stroke, "PNG")
    folder, first = root / "omniglot-py", None
    for split, part in (("train", "images_background"), ("test", "images_evaluation")):
        for n, label in enumerate(labels_of([counts[split]])):
            alphabet = f"{'Korean' if split == 'train' else 'Ge_ez'}_({label // 4:02})"
            number = label + 1 + (counts["train"][1] if split == "test" else 0)
            path = (
                folder / part / alphabet / f"character{label % 4 + 1:02}" / f"{number:04}_{n}.png"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            if linked and first is not None:
                path.hardlink_to(first)
            elif linked:
                path.write_bytes(stroke.getvalue())
                first = path
            else:
                character(label * 2 + (split == "test"), n).save(path)
    (folder / "images_background" / ".DS_Store").write_bytes(b"what macOS leaves")
    return root


def character(label: int, copy: int) -> Image.Image:
    """Black strokes on white, one bit a pixel; the copies of a class are shifted."""
    coarse = np.random.default_rng(label).random((7, 7)) < 0.4
    ink = np.roll(np.kron(coarse, np.ones((15, 15), bool)), copy % 4, axis=1)
    return Image.fromarray(~ink)


def pictures_of(labels: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [n, *shape]: noise, in which the first value tells the class and the second the number."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    flat = pixels.reshape(len(labels), -1)
    flat[:, 0], flat[:, 1] = labels, np.arange(len(labels)) % 256
    return pixels


def shares(counts: Counts) -> tuple[list[int], list[int]]:
    """Labels of the published training and test parts, in no order: five sixths, one sixth of each class."""
    labels = np.array(labels_of([counts["train"], counts["test"]]))
    tested = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        tested[here[-max(len(here) // 6, 1) :]] = True
    rng = np.random.default_rng(0)
    return rng.permutation(labels[~tested]).tolist(), rng.permutation(labels[tested]).tolist()


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(root: Path, counts: Counts = SMALL["cifar10"]) -> Path:
    """cifar-10-batches-py/: five batches and a test batch, pickled as Python 2 did, planes one by one."""
    folder, (train, test) = root / "cifar-10-batches-py", shares(counts)
    folder.mkdir(parents=True)
    pixels, cuts = pictures_of(train, (3072,)), np.linspace(0, len(train), 6).astype(int)
    for n in range(5):
        here = slice(cuts[n], cuts[n + 1])
        batch = {"batch_label": f"training batch {n + 1} of 5", "labels": train[here]}
        write_pickle(folder / f"data_batch_{n + 1}", batch | {"data": pixels[here]})
    write_pickle(folder / "test_batch", {"labels": test, "data": pictures_of(test, (3072,))})
    names = list(CIFAR10[: counts["train"][1] + counts["test"][1]])
    write_pickle(folder / "batches.meta", {"num_cases_per_batch": 10_000, "label_names": names})
    return root


def cifar100(root: Path, counts: Counts = SMALL["cifar100"]) -> Path:
    """cifar-100-python/: train, test and meta, with fine and coarse labels."""
    folder, classes = root / "cifar-100-python", counts["train"][1] + counts["test"][1]
    folder.mkdir(parents=True)
    for name, labels in zip(("train", "test"), shares(counts), strict=True):
        batch = {"fine_labels": labels, "coarse_labels": [label * 7 % 20 for label in labels]}
        write_pickle(folder / name, batch | {"data": pictures_of(labels, (3072,))})
    names = {"fine_label_names": [f"thing_{n:02}" for n in range(classes)]}
    names["coarse_label_names"] = [f"kind_{n:02}" for n in range(20)]
    write_pickle(folder / "meta", names)
    return root


def mnist(root: Path, counts: Counts = SMALL["mnist"], packed: bool = True) -> Path:
    """MNIST/raw/, where torchvision puts it: four IDX files, packed or not."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, labels in zip(("train", "t10k"), shares(counts), strict=True):
        for kind, array in (
            ("images-idx3", pictures_of(labels, (28, 28))),
            ("labels-idx1", np.array(labels, np.uint8)),
        ):
            content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
            content += array.tobytes()
            ending = ".gz" if packed else ""
            path = folder / f"{name}-{kind}-ubyte{ending}"
            path.write_bytes(gzip.compress(content, 1) if packed else content)
    return root


def write_pickle(path: Path, value: Mapping[str, object]) -> None:
    path.write_bytes(b"\x80\x02" + pickled(value) + b".")


def pickled(value: object) -> bytes:
    """A value as cPickle of Python 2 writes it by protocol 2: words are bytes, arrays are numpy.core's."""
    if isinstance(value, str | bytes):
        content = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<I", len(content)) + content
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, Sequence):
        return b"](" + b"".join(map(pickled, value)) + b"e"
    if isinstance(value, Mapping):
        return b"}(" + b"".join(pickled(k) + pickled(v) for k, v in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    shape = b"(" + b"".join(map(pickled, value.shape)) + b"t"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return start + b"(K\x01" + shape + kind + b"\x89" + pickled(value.tobytes()) + b"tb"


MAKERS = {
    "vehicleid": vehicleid,
    "inat2018": inat2018,
    "flowers102": flowers102,
    "ut_zappos50k": ut_zappos50k,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "omniglot": omniglot,
}


def expect_labels(monkeypatch, flowers102, root: Path) -> None:
    """Let the made imagelabels.mat be the published one."""
    content = (root / "flowers-102" / "imagelabels.mat").read_bytes()
    images, labels = flowers102.FILES
    made = dataclasses.replace(labels, md5=hashlib.md5(content).hexdigest())
    monkeypatch.setattr(flowers102, "FILES", (images, made))
