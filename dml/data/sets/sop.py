"""Stanford Online Products (Song et al., CVPR 2016, arXiv:1511.06452): 120,053 images of 22,634 products.

Its own lists are class-disjoint: products 1-11,318 train, 11,319-22,634 are tested.
"""

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.sources import Source

FILES = (
    RemoteFile(
        "Stanford_Online_Products.zip",
        urls=("http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",),
        md5="7f73d41a2f44250d4779881525aea32e",
        sha256="b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
        size=3_083_860_082,
        by_hand="Google Drive, file 1TclrpQOF_ullUP99wk_gjGN8pKvtErG8",
    ),
)
COUNTS = {"train": (59_551, 11_318), "test": (60_502, 11_316)}  # images, classes
HEADER = "image_id class_id super_class_id path"


def load(
    *,
    root: str | None,
    name: str = "sop",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
    halves: bool = False,
) -> ImageIndex:
    """Index the directory Stanford_Online_Products at `root` or below it.

    Classes are in the order of their ids; superclasses are the 12 kinds of product.  halves: cut all
    classes in two equal halves, as the Reality Check does (11,317 and 11,317; product 11,318 is tested).
    protocol, val_fraction, seed, fold, folds: see `dml.data.protocols.training_splits`.

    Raises ConfigurationError: not there, not unpacked or in part, or other counts.
    """
    source = Source(root, name, "Stanford Online Products", FILES)
    directory, _ = source.locate({"lists": "Ebay_train.txt"}, lambda place: None)
    lists = {s: source.rows(directory / f"Ebay_{s}.txt", 4, head=[HEADER]) for s in COUNTS}
    rows, cut = lists["train"] + lists["test"], len(lists["train"])
    paths = [row[3] for row in rows]
    ids, groups = (
        source.numbers(directory / "Ebay_*.txt", [row[column] for row in rows]) for column in (1, 2)
    )
    parts = {"train": np.arange(cut), "test": np.arange(cut, len(rows))}
    source.require_counts(ids, parts, COUNTS)
    source.require_files(directory, paths)
    numbers, first, labels = np.unique(ids, return_index=True, return_inverse=True)
    names = tuple(f"{paths[i].split('_final')[0]} {n}" for n, i in zip(numbers, first, strict=True))
    if halves:
        seen = labels < len(numbers) // 2
        parts = {"train": np.flatnonzero(seen), "test": np.flatnonzero(~seen)}
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = parts | training_splits(parts["train"], labels, seed=seed, **plan)
    return ImageIndex(name, directory, np.array(paths), labels, names, splits, groups - 1)
