"""Protocols: which images train, which choose the weights, which are tested.

standard: whole classes are taken out of the training classes for validation.
standard_full: every training class trains; no validation, hence the last epoch's weights.
kfold: fold k of n of the Reality Check (Musgrave et al., ECCV 2020, arXiv:2003.08505): the training classes
in their order, a contiguous n-th of them validates, the others train; folds begin at k/n, wrapping round.
closed_set: for own data: training and test share their classes, and the images of each are dealt to them.
"""

import itertools
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np

from dml.data.index import SPLITS, shortened
from dml.errors import ConfigurationError, Problem

PROTOCOLS = ("standard", "standard_full", "kfold")  # of the published sets
OWN_PROTOCOLS = (*PROTOCOLS, "closed_set")


def training_splits(
    train: np.ndarray,
    labels: np.ndarray,
    *,
    protocol: str,
    val_fraction: float,
    seed: int,
    fold: int | None,
    folds: int,
) -> dict[str, np.ndarray]:
    """The training images, divided into "train" and, where the protocol validates, "val".

    train: int64 positions of the training images.  labels: int64 [n] of all images; for kfold their order
    is that of the classes.  val_fraction: share of the classes (closed_set: of each class's images) that
    validates; 0: none.  seed: of the choice of classes.  fold: 0..folds-1, for kfold alone.

    Returns split -> sorted int64 positions.  Raises ConfigurationError for options out of range, and for
    folds of fewer than two classes.
    """
    problems = protocol_problems(protocol, val_fraction, fold, folds)
    many = len(np.unique(labels[train]))
    if protocol == "kfold" and not problems and many // folds < 2:
        what = f"leaves {many // folds} of {many} training classes to validate, and 2 are needed.\n"
        what += f"Choose {many // 2} or fewer, or add classes."
        problems.append(Problem(f"data.folds={folds}", what))
    if problems:
        raise ConfigurationError(problems)
    if protocol == "kfold":
        parts = fold_split(labels[train], fold or 0, folds)
    elif protocol == "standard_full" or val_fraction == 0 or len(train) == 0:
        return {"train": train}
    else:
        deal = image_split if protocol == "closed_set" else class_disjoint_split
        parts = deal(labels[train], {"train": 1 - val_fraction, "val": val_fraction}, seed)
    return {split: train[positions] for split, positions in parts.items()}


def class_disjoint_split(
    labels: np.ndarray, fractions: Mapping[str, float], seed: int, least: int = 2
) -> dict[str, np.ndarray]:
    """Deal whole classes to splits: shuffled by `seed`, then cut by `fractions`.

    labels: int64 [n].  fractions: split name -> share of the classes, summing to 1.  Returns split ->
    sorted int64 positions.  Every split with a fraction above 0 gets at least `least` classes while
    there are classes enough.  The order comes from Python's `random()`, whose values for an integer seed
    are the same in every version: a split never changes.
    """
    classes = np.unique(labels)
    wanted = {name: share for name, share in fractions.items() if share > 0}
    least = min(least, len(classes) // max(len(wanted), 1))
    dealt = dealt_out(classes, wanted, Random(seed), least)
    return {
        name: np.flatnonzero(np.isin(labels, chosen)).astype(np.int64)
        for name, chosen in dealt.items()
    }


def image_split(
    labels: np.ndarray, fractions: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Deal the images of each class to splits: shuffled by `seed`, then cut by `fractions`.

    labels: int64 [n].  fractions: split name -> share of each class's images, summing to 1.  Returns split
    -> sorted int64 positions.  Each class has an image in every split; one with fewer images than there are
    splits stays whole in the first.  The same for ever, as `class_disjoint_split`.
    """
    wanted, rng = {name: share for name, share in fractions.items() if share > 0}, Random(seed)
    parts = {name: [np.empty(0, np.int64)] for name in wanted}
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        few = len(images) < len(wanted)
        dealt = {next(iter(wanted)): images} if few else dealt_out(images, wanted, rng, least=1)
        for name, chosen in dealt.items():
            parts[name].append(chosen)
    return {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}


def dealt_out(
    items: np.ndarray, fractions: Mapping[str, float], rng: Random, least: int
) -> dict[str, np.ndarray]:
    """Shuffle `items` and cut them by `fractions`, `least` or more in each part.

    What rounding leaves over goes to the nearer part.
    """
    order = np.argsort([rng.random() for _ in items], kind="stable")
    bounds = np.floor(np.cumsum(list(fractions.values())) * len(items) + 0.5).astype(int)
    for i in range(len(bounds)):  # no part is left short
        bounds[i] = max(bounds[i], (bounds[i - 1] if i else 0) + least)
        bounds[i] = min(bounds[i], len(items) - (len(bounds) - 1 - i) * least)
    dealt, start = {}, 0
    for name, stop in zip(fractions, bounds, strict=True):
        dealt[name] = items[order[start : max(stop, start)]]
        start = max(stop, start)
    return dealt


def fold_split(labels: np.ndarray, fold: int, folds: int) -> dict[str, np.ndarray]:
    """Fold `fold` of `folds`, as the Reality Check cuts them.

    labels: int64 [n] of C classes.  The floor(C / folds) classes before the class at place
    floor(fold * C / folds), wrapping round, are "val", all others "train": with 100 classes and 4 folds,
    fold 0 validates on the last 25 and fold 1 on the first 25.
    """
    classes = np.unique(labels)
    start = fold * len(classes) // folds
    val = np.roll(classes, -start)[len(classes) - len(classes) // folds :]
    chosen = np.isin(labels, val)
    return {"train": np.flatnonzero(~chosen), "val": np.flatnonzero(chosen)}


def completed_splits(
    given: Mapping[str, np.ndarray] | None,
    labels: np.ndarray,
    *,
    seed: int,
    test_fraction: float,
    val_fraction: float,
    protocol: str = "standard",
    fold: int | None = None,
    folds: int = 4,
) -> dict[str, np.ndarray]:
    """A source's own splits, and what it lacks of them.

    given: split -> positions, or None where the source names none: then `test_fraction` of the classes
    (closed_set: of each class's images) become test and the others train.  Without "val", the protocol
    takes it out of train (`training_splits`).
    """
    if given is None:
        deal = image_split if protocol == "closed_set" else class_disjoint_split
        given = deal(labels, {"train": 1 - test_fraction, "test": test_fraction}, seed)
    if "val" in given:
        return dict(given)
    return dict(given) | training_splits(
        np.asarray(given.get("train", ()), np.int64),
        labels,
        protocol=protocol,
        val_fraction=val_fraction,
        seed=seed,
        fold=fold,
        folds=folds,
    )


def protocol_problems(
    protocol: str, val_fraction: float, fold: int | None, folds: int, prefix: str = "data"
) -> list[Problem]:
    """Options of a protocol that are out of range, or that it has not."""
    problems = []
    if protocol not in OWN_PROTOCOLS:
        known = ", ".join(OWN_PROTOCOLS)
        problems.append(Problem(f"{prefix}.protocol={protocol}", f"must be one of {known}."))
    if not 0 <= val_fraction < 1:
        what = "must lie in [0, 1). 0 makes no validation split."
        problems.append(Problem(f"{prefix}.val_fraction={val_fraction:g}", what))
    if folds < 2:
        problems.append(Problem(f"{prefix}.folds={folds}", "must be at least 2."))
    return problems + fold_problems(protocol, fold, folds, prefix)


def fold_problems(protocol: str, fold: int | None, folds: int, prefix: str) -> list[Problem]:
    """A fold that is missing, out of range, or of a protocol without folds."""
    if protocol == "kfold" and fold is None:
        what = f"has no value. Add {prefix}.fold=0, or -m {prefix}.fold="
        what += f"{','.join(map(str, range(folds)))} for all of them."
        return [Problem(f"{prefix}.fold", what)]
    if protocol == "kfold" and fold is not None and not 0 <= fold < folds:
        return [Problem(f"{prefix}.fold={fold}", f"must lie in [0, {folds - 1}].")]
    if protocol != "kfold" and fold is not None:
        what = f"{prefix}.protocol={protocol} has no folds. Add {prefix}.protocol=kfold."
        return [Problem(f"{prefix}.fold={fold}", what)]
    return []


def fraction_problems(test_fraction: float) -> list[Problem]:
    """A fraction that is out of range. The schema checks it too; `load` may be called without it."""
    if 0 < test_fraction < 1:
        return []
    return [Problem(f"data.test_fraction={test_fraction:g}", "must lie in (0, 1).")]


def split_problems(
    splits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    where: str,
    own: bool,
    closed_set: bool = False,
) -> list[Problem]:
    """Classes that two splits share, and splits of fewer than two classes.

    `own` says whether the source named the splits; `where` is what the user typed.
    """
    problems = []
    classes = {split: np.unique(labels[positions]) for split, positions in splits.items()}
    for one, other in itertools.combinations([s for s in SPLITS if s in classes], 2):
        shared = [class_names[label] for label in np.intersect1d(classes[one], classes[other])]
        if shared and not closed_set:
            many = f"{len(shared)} classes are" if len(shared) > 1 else "1 class is"
            problems.append(
                Problem(
                    where,
                    f"{many} in both {one} and {other}: {shortened(shared)}.\n"
                    "Splits share no class: what is measured must be unseen in training. "
                    "Give each class one split.",
                )
            )
    needed = [split for split in SPLITS if split in splits or split != "val"]
    short = {split: len(classes.get(split, ())) for split in needed}
    short = {split: n for split, n in short.items() if n < 2}
    total = len(np.unique(labels))
    if not short:
        return problems
    if not own:
        parts = " and ".join(f"2 for {split}" for split in needed)
        words = f"has {total} class{'es' if total != 1 else ''}, and needs at least {parts}."
        mend = "Add classes" + (", or data.val_fraction=0." if "val" in splits else ".")
    else:
        words = "; ".join(
            f"the {split} split has {n} class{'es' if n != 1 else ''}, and needs at least 2"
            for split, n in short.items()
        )
        words, mend = (
            f"{words}.",
            "Move or add classes, or name no splits: they are then made by seed.",
        )
        if "val" in short and set(short) <= {"train", "val"}:
            mend = "Add training classes, or data.val_fraction=0 where no val split is named."
    return [*problems, Problem(where, f"{words}\n{mend}")]


def own_val_problems(given: Mapping[str, np.ndarray] | None, protocol: str) -> list[Problem]:
    """A source that names its own validation images, and a protocol that does not use them."""
    if given is None or "val" not in given or protocol in ("standard", "closed_set"):
        return []
    what = (
        "makes its own" if protocol == "kfold" else "has none"
    ) + " validation split, and the data name one.\nMove those images to train, or add "
    return [Problem(f"data.protocol={protocol}", f"{what}data.protocol=standard.")]
