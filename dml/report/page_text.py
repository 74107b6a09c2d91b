"""What the numbers of a run say in plain words."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dml.evaluation.statistics import Difference
from dml.report.gallery import Confusion

EVEN = 1e-12  # classes whose means differ by no more have stayed where they were


def summary(
    finished: Mapping[str, Any],
    recall: Mapping[str, float],
    interval: Difference | None,
    gain: Difference | None,
    over: str,
    classes: Mapping[str, np.ndarray],
    worst: Confusion | None,
    names: tuple[str, ...],
) -> list[str]:
    """A paragraph, sentence by sentence.

    recall: frozen, untrained, test -> Recall@1.  interval, gain: of the trained encoder's, and of trained
    less untrained; over: what was drawn for them.  classes: untrained, test -> Recall@1 of each class.
    worst: the pair of classes confused most often.  names: of classes, by label.
    """
    data = finished["data"]["splits"]["test"]
    trained, untrained, frozen = recall["test"], recall["untrained"], recall["frozen"]
    unseen = "classes never seen in training"
    if not finished["protocol"]["class_disjoint"]:
        unseen = "classes, not all of them unseen in training"
    asked = "images" if "queries" not in data else "query images"
    sentences = [
        f"Of 100 {asked} of {data['classes']:,} {unseen}, {100 * trained:.0f} find an image of their own "
        f"class nearest to them: a Recall@1 of {trained:.3f}{between(interval, over)}.",
        f"It {moved(untrained, trained)} {untrained:.3f} before training{chance(gain)}; the trunk's own "
        f"features, before training and without the embedding layer, reach {frozen:.3f}"
        f"{against_frozen(trained, frozen)}.",
    ]
    change = classes["test"] - classes["untrained"]
    up, down = int((change > EVEN).sum()), int((change < -EVEN).sum())
    same = len(change) - up - down
    sentences.append(
        f"{up:,} of {plural(len(change), 'class')} gained, {down:,} lost and {same:,} stayed as "
        f"{'it was' if same == 1 else 'they were'}."
    )
    if worst is None:
        sentences.append("No class was taken for another.")
    else:
        first, second = (names[label] for label in worst.labels)
        sentences.append(
            f"The pair confused most often is {first} and {second}: {worst.wrong[0]:,} of "
            f"{worst.queries[0]:,} images of the first and {worst.wrong[1]:,} of {worst.queries[1]:,} of "
            "the second find the other class first."
        )
    return sentences


def between(interval: Difference | None, over: str) -> str:
    """The interval in brackets."""
    if interval is None:
        return ""
    return f" (95 % interval {interval.low:.3f} to {interval.high:.3f}, were other {over} drawn like these)"


def moved(before: float, after: float) -> str:
    """`rose from`, `fell from` or `stayed at`, as three digits tell them apart."""
    if f"{before:.3f}" == f"{after:.3f}":
        return "stayed at"
    return "rose from" if after > before else "fell from"


def chance(gain: Difference | None) -> str:
    """What to say where the interval of the gain holds 0."""
    if gain is None or gain.low > 0 or gain.high < 0:
        return ""
    return f", a difference that chance would make as well (interval {gain.low:+.3f} to {gain.high:+.3f})"


def against_frozen(trained: float, frozen: float) -> str:
    """What to say where training has not paid."""
    if trained >= frozen:
        return ""
    return ", which is more: on unseen classes this training has not paid"


def plural(count: int, noun: str) -> str:
    """`1 class`, `2 classes`, `3 queries`, `1,600 images`."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{count:,} {noun[:-1]}ies"
    return f"{count:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch')) else 's'}"
