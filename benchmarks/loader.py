"""Reading images: ours against torchvision's ImageFolder; the cost of an index and of a sampler.

    python benchmarks/loader.py root=BIRDS [images=256] [rounds=7] [part=images,copies,memory,index,sampler]

root: a folder of JPEGs, at any depth.  The photographs at hand are small: they are upscaled to 500 x 375,
the size of many in CUB-200-2011, and written again as JPEG (quality 90, 4:2:0).  Upscaled photographs
have less detail, and hence fewer bytes, than real ones of that size.

images   decode + RandomResizedCrop 224 (scale 0.08-1) + flip + normalise, batches of 32, one thread.  The
         sides take turns; each figure is the median over the rounds of the CPU time of the process.
         Ours sends bytes, which the encoder normalises; the last two lines leave that to a GPU.
copies   what a format of the small copies (data.cache=resized) costs in bytes, time and fidelity.
memory   what a worker process copies of an index of 120,053 images by looking at all of it.
index    opening Stanford Online Products: files made at the official counts, one picture linked.
sampler  100,000 batches of 32 x 4 over 11,318 classes and 59,551 images, as Stanford Online Products has.
         Its class sizes are between 2 and 12; these are drawn so, the file itself being elsewhere.
"""

import gc
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import simplejpeg
import torch
from PIL import Image
from pytorch_metric_learning.samplers import MPerClassSampler
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dml.data import cache
from dml.data.augment import Augmentation
from dml.data.index import ImageSet
from dml.data.loaders import train_loader
from dml.data.preprocess import Preprocess
from dml.data.samplers import PK, Random
from dml.run import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESS = Preprocess(224, 256, "bilinear", MEAN, STD)
BATCH = 32


def upscaled(root: Path, count: int, folder: Path) -> ImageSet:
    """`count` photographs as JPEGs of 500 x 375, in folders of a class each."""
    files = sorted(path for path in root.rglob("*.jpg"))
    names = []
    for number, file in enumerate(files[:: max(1, len(files) // count)][:count]):
        with Image.open(file) as image:
            width, height = image.size
            box = (0, height / 8, width, height * 7 / 8) if width <= height else None
            large = image.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC, box)
        names.append(f"{number % 8}/{number:04d}.jpg")
        (folder / names[-1]).parent.mkdir(exist_ok=True)
        large.save(folder / names[-1], quality=90)
    size = len(names)
    return ImageSet(folder, np.array(names), np.zeros(size, np.int64), ("bird",), np.arange(size))


def torchvision_loader(folder: Path) -> DataLoader:
    """What a torchvision user would write."""
    return DataLoader(
        ImageFolder(
            folder,
            transforms.Compose(
                [
                    transforms.RandomResizedCrop(224),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                    transforms.Normalize(MEAN, STD),
                ]
            ),
        ),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
    )


def our_loader(images: ImageSet) -> DataLoader:
    plain = dict.fromkeys(("degrees", "translate", "shear", "color_jitter", "rand_augment"), 0)
    augmentation = Augmentation(
        PREPROCESS, resize=None, scale=(0.08, 1), ratio=(3 / 4, 4 / 3), flip=0.5, erase=0, **plain
    )
    return train_loader(images, Random(images.labels, batch_size=BATCH, seed=0), augmentation, 0, 0)


def compare_images(root: Path, count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        images = upscaled(root, count, folder)
        copies = cache.resized(images, cache.LEAST_SIDE, scratch, 0)
        theirs, ours, small = torchvision_loader(folder), our_loader(images), our_loader(copies)
        sides = {
            "torchvision ImageFolder": lambda: [batch for batch, _ in theirs],
            "dml": lambda: [PREPROCESS.normalize(batch.images) for batch in ours],
            "dml, data.cache=resized": lambda: [
                PREPROCESS.normalize(batch.images) for batch in small
            ],
            "dml, GPU normalises": lambda: [batch.images for batch in ours],
            "dml, both": lambda: [batch.images for batch in small],
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                start = time.process_time()
                batches = side()
                seconds[name].append((time.process_time() - start) / (len(batches) * BATCH))
        print(f"images: {len(images)} JPEGs of 500 x 375, median of {rounds} rounds")
        base = np.median(seconds["torchvision ImageFolder"])
        for name, times in seconds.items():
            each = np.median(times)
            print(
                f"  {name:26} {1e6 * each:6.0f} us  {1 / each:6.0f} images/s  x {base / each:.2f}"
            )


def compare_copies(root: Path, count: int, rounds: int) -> None:
    """Bytes, decoding time and distance from the resized pixels, by format of the copy."""
    with tempfile.TemporaryDirectory() as scratch:
        images = upscaled(root, min(count, 64), Path(scratch))
        whole = [Image.open(images.path(i)).convert("RGB") for i in range(len(images))]
        resized = [image.resize((341, 256), Image.Resampling.BICUBIC) for image in whole]
    print("copies: 341 x 256, by format")
    for quality, subsampling in ((90, "4:2:0"), (95, "4:2:0"), (95, "4:4:4"), (None, "PNG")):
        data = []
        for image in resized:
            buffer = io.BytesIO()
            if quality is None:
                image.save(buffer, "PNG")
            else:
                image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
            data.append(buffer.getvalue())
        read = png if quality is None else simplejpeg.decode_jpeg
        times = []
        for _ in range(rounds):
            start = time.process_time()
            decoded = [read(item) for item in data]
            times.append((time.process_time() - start) / len(data))
        error = [
            np.square(np.asarray(image, np.float64) - pixels).mean()
            for image, pixels in zip(resized, decoded, strict=True)
        ]
        noise = 10 * np.log10(255**2 / np.mean(error)) if np.mean(error) else np.inf
        name = subsampling if quality is None else f"JPEG {quality} {subsampling}"
        print(
            f"  {name:14} {np.mean([len(x) for x in data]) / 1e3:6.1f} kB"
            f"  {1e6 * np.median(times):6.0f} us  PSNR {noise:.1f} dB"
        )


def png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Walk(Dataset):
    """Item 0: by how many MB the worker's own memory grows while it looks at `length` images."""

    def __init__(self, length: int, look):
        self.length, self.look = length, look

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> float:
        gc.disable()  # a collection writes to every object there is, whoever looks at it
        before = own_memory()
        for position in range(self.length):
            self.look(position)
        return own_memory() - before


def own_memory() -> float:
    """Pages of this process that no other shares, MB: those that it wrote to since it was forked."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return (
        sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private")) / 1e3
    )


def compare_memory() -> None:
    count = 120_053
    names = [f"category_final/{111_085_122_871 + i}_{i % 12}.JPG" for i in range(count)]
    labels = np.arange(count) // 5
    samples = [(f"/data/{name}", int(label)) for name, label in zip(names, labels, strict=True)]
    images = ImageSet(Path("/data"), np.array(names), labels, ("a",), np.arange(count))
    sides = {
        "list of (path, label)": lambda i: (Path(samples[i][0]), samples[i][1]),
        "dml ImageSet": lambda i: (images.path(i), images.labels[i]),
        "names made on the way": lambda i: (
            Path(f"/data/category_final/{111_085_122_871 + i}_{i % 12}.JPG"),
            i,
        ),
    }
    print(f"memory: what a worker process copies while it looks at {count:,} images")
    for name, look in sides.items():
        (grown,) = DataLoader(Walk(count, look), batch_size=None, num_workers=1)
        print(f"  {name:26} {grown:6.1f} MB")


def sop_sizes() -> np.ndarray:
    """11,318 class sizes between 2 and 12 that sum to 59,551."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 9, 11_318)
    while sizes.sum() != 59_551:
        step = np.sign(59_551 - sizes.sum())
        chosen = rng.integers(len(sizes))
        if 2 <= sizes[chosen] + step <= 12:
            sizes[chosen] += step
    return sizes


def compare_index() -> None:
    """Seconds and peak memory of a process that opens the index, and of one that imports the same only."""
    opening = (
        "import time, dml.data.sets.sop as sop; start = time.perf_counter(); {}; "
        "print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "Stanford_Online_Products"
        (folder / "chair_final").mkdir(parents=True)
        first, classes = 1, 1
        for split, (count, products) in {
            "train": (59_551, 11_318),
            "test": (60_502, 11_316),
        }.items():
            lines = ["image_id class_id super_class_id path"]
            for row in range(count):
                path = f"chair_final/{110_000_000_000 + first + row}_0.JPG"
                if row % 50_000 == 0:  # a file takes 65,000 links at most
                    picture = folder / path
                    Image.new("RGB", (8, 8)).save(picture, "JPEG")
                else:
                    os.link(picture, folder / path)
                lines.append(f"{first + row} {classes + row * products // count} 1 {path}")
            (folder / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n")
            first, classes = first + count, classes + products
        print("index: Stanford Online Products at its official counts, 120,053 images")
        for name, call in (("imports alone", "pass"), ("opened", f"sop.load(root={scratch!r})")):
            code = f"{opening.format(call)}; print(open('/proc/self/status').read())"
            done = subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            )
            seconds, status = done.stdout.split("\n", 1)
            peak = next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)
            print(f"  {name:26} {float(seconds):6.2f} s  peak {int(peak) / 1e3:.0f} MB")


def compare_samplers() -> None:
    sizes = sop_sizes()
    labels = np.repeat(np.arange(len(sizes)), sizes)
    print("sampler: 100,000 batches of 32 x 4")
    sampler = PK(
        labels,
        classes_per_batch=32,
        images_per_class=4,
        seed=0,
        batches_per_epoch=100_000,
        small_classes="repeat",
    )
    start = time.process_time()
    assert sum(1 for _ in sampler.batches(0)) == 100_000
    ours = time.process_time() - start
    few = 2_000  # theirs is linear in the number of batches
    theirs = MPerClassSampler(labels, m=4, batch_size=128, length_before_new_iter=128 * few)
    start = time.process_time()
    assert len(list(theirs)) == 128 * few
    peer = (time.process_time() - start) * 100_000 / few
    print(f"  PML MPerClassSampler       {peer:6.1f} s  (from {few:,} batches)")
    print(f"  dml PK                     {ours:6.1f} s  x {peer / ours:.1f}")


def main() -> None:
    options = {"images": "256", "rounds": "7", "part": "images,copies,memory,index,sampler"}
    options |= dict(word.split("=", 1) for word in sys.argv[1:])
    parts = options["part"].split(",")
    if "root" not in options and {"images", "copies"} & set(parts):
        raise SystemExit(__doc__)
    torch.set_num_threads(1)
    keep_freed_memory()  # as train.py does; for both sides
    count, rounds = int(options["images"]), int(options["rounds"])
    if "images" in parts:
        compare_images(Path(options["root"]), count, rounds)
    if "copies" in parts:
        compare_copies(Path(options["root"]), count, rounds)
    if "memory" in parts:
        compare_memory()
    if "index" in parts:
        compare_index()
    if "sampler" in parts:
        compare_samplers()


if __name__ == "__main__":
    main()
