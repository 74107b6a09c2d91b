"""In-Shop Clothes Retrieval (DeepFashion, Liu et al., CVPR 2016): 52,712 images of 7,982 garments.

Its own list is class-disjoint, and names for the tested garments which images are queries and which are
the gallery: a query is searched in the gallery alone.
"""

from pathlib import Path

import numpy as np

from dml.data.fetch.download import RemoteFile
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.data.sets.sources import Source

PAGE = "http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
FILES = (
    RemoteFile("img.zip", by_hand=f"{PAGE} (a form; the folder Img of the drive)"),
    RemoteFile("list_eval_partition.txt", by_hand=f"{PAGE} (a form; the folder Eval of the drive)"),
)
COUNTS = {"train": (25_882, 3_997), "query": (14_218, 3_985), "gallery": (12_612, 3_985)}
LIST = "list_eval_partition.txt"
FOLDERS = {False: ("Img/img", "img"), True: ("Img/img_highres", "img_highres")}  # by highres
ARCHIVES = {size: tuple(f"{folder}.zip" for folder in FOLDERS[size]) for size in FOLDERS}
HEADER = "image_name item_id evaluation_status"


def load(
    *,
    root: str | None,
    name: str = "inshop",
    protocol: str = "standard",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 4,
    highres: bool = False,
) -> ImageIndex:
    """Index list_eval_partition.txt, at `root` or one directory below, there or in Eval.

    Images are in Img/img or img, the 256 x 256 ones; highres: in Img/img_highres or img_highres.  Classes
    are in the order of their ids.  protocol, val_fraction, seed, fold, folds: see
    `dml.data.protocols.training_splits`; validation images are queries and gallery alike.

    Raises ConfigurationError: not there, not unpacked or in part, or other counts.
    """
    source = Source(root, name, "In-Shop Clothes Retrieval", FILES)
    place, layout = source.locate({"in Eval": f"Eval/{LIST}", "beside": LIST}, lambda place: None)
    file = place / ("Eval" if layout == "in Eval" else "") / LIST
    total = sum(images for images, _ in COUNTS.values())
    rows = source.rows(file, 3, head=[str(total), HEADER])
    names, labels = np.unique([row[1] for row in rows], return_inverse=True)
    status = np.array([row[2].strip() for row in rows])
    parts = {part: np.flatnonzero(status == part) for part in COUNTS}
    source.require_counts(labels, parts, COUNTS)
    below = image_folder(source, place, highres)
    paths = [f"{below}/{row[0].removeprefix('img/')}" for row in rows]
    source.require_files(place, paths)
    plan = {"protocol": protocol, "val_fraction": val_fraction, "fold": fold, "folds": folds}
    splits = training_splits(parts["train"], labels, seed=seed, **plan)
    splits["test"] = np.flatnonzero(status != "train")
    class_names = tuple(names.tolist())
    return ImageIndex(
        name, place, np.array(paths), labels, class_names, splits, queries=status == "query"
    )


def image_folder(source: Source, place: Path, highres: bool) -> str:
    """The directory of the images that are asked for, relative to `place`."""
    there = [f for f in (*FOLDERS[False], *FOLDERS[True]) if (place / f).is_dir()]
    wanted = [folder for folder in there if folder in FOLDERS[highres]]
    if wanted:
        return wanted[0]
    if there:
        told = f"holds {there[0]} alone. Add data.highres={str(not highres).lower()}, or put "
        raise source.refused(f"{told}{' or '.join(FOLDERS[highres])} there.")
    packed = [f for f in ARCHIVES[highres] if (place / f).is_file()]
    if packed:
        raise source.refused(f"holds {packed[0]}, not unpacked. Run {source.prepare}")
    raise source.refused(
        f"has the list and no images: there is no {' or '.join(FOLDERS[highres])} in {place}.\n"
        f"How to get them: {source.prepare}"
    )
