"""The pictures of a run's page: queries with their nearest images, confused classes, margins."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dml.report import figures, gallery, page_text
from dml.report.gallery import Neighbours
from dml.report.page_curves import Figure
from dml.report.page_evaluation import Evaluated

SEED = 0  # of the queries that are shown
QUERIES, NEAREST = 6, 8  # of each kind, and images beside each


@dataclass(frozen=True)
class Tile:
    """An image beside a query.

    item: its row of the embeddings.  value: how near it is, as shown.  point: its number on the map.
    """

    item: int
    class_name: str
    path: str
    right: bool | None = None
    value: float | None = None
    point: int | None = None


@dataclass(frozen=True)
class Query:
    """A query and its nearest images.  rank: of the first right one.  margin: as shown."""

    image: Tile
    nearest: list[Tile]
    rank: int
    margin: float


@dataclass(frozen=True)
class Kind:
    """Queries that were chosen in one way."""

    id: str
    title: str
    told: str
    queries: list[Query]


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes and some of the queries that take one for the other."""

    names: tuple[str, str]
    wrong: tuple[int, int]
    sizes: tuple[int, int]
    queries: list[Query]


def kinds(found: Evaluated, near: Neighbours, place: Mapping[int, int]) -> list[Kind]:
    """Usual queries, the clearest and the worst.  place: row of an image -> its number on the map."""
    labels = found.embedded.labels
    chosen = [
        (
            *("random", "Random queries"),
            f"Drawn with seed {SEED} from all queries that have an image of their class to find: the usual.",
            gallery.random_queries(near, QUERIES, SEED),
        ),
        (
            *("best", "Best queries"),
            "The largest margins, at most one query of a class: what the encoder is surest of.",
            gallery.extreme_queries(near, labels, QUERIES, best=True),
        ),
        (
            *("worst", "Worst queries"),
            "The smallest margins, at most one query of a class: where the encoder is most clearly wrong. "
            "Look for wrong labels, copies, and classes that differ in what the crop leaves out.",
            gallery.extreme_queries(near, labels, QUERIES, best=False),
        ),
    ]
    return [
        Kind(name, title, told, [query_of(found, near, int(row), NEAREST, place) for row in rows])
        for name, title, told, rows in chosen
    ]


def query_of(
    found: Evaluated, near: Neighbours, row: int, count: int, place: Mapping[int, int]
) -> Query:
    """A query with its `count` nearest images."""
    embedded, item = found.embedded, int(near.query[row])
    nearest = near.nearest[row, :count]
    values = gallery.nearness(embedded, np.full(len(nearest), item), nearest)
    tiles = [
        tile_of(
            found,
            int(other),
            right=bool(embedded.labels[other] == embedded.labels[item]),
            value=gallery.shown_value(embedded.similarity, float(value)),
        )
        for other, value in zip(nearest, values, strict=True)
    ]
    image = tile_of(found, item, point=place.get(item))
    return Query(image, tiles, int(near.rank[row]), float(near.margin[row]))


def tile_of(found: Evaluated, item: int, **more: Any) -> Tile:
    """An image of the test split."""
    assert found.embedded.paths is not None
    name = found.class_names[found.embedded.labels[item]]
    return Tile(item, name, str(found.embedded.paths[item]), **more)


def confused_pair(
    found: Evaluated, near: Neighbours, pair: gallery.Confusion, place: Mapping[int, int]
) -> ConfusedPair:
    """A pair of classes with example queries, each with its nearest image."""
    first, second = pair.labels
    return ConfusedPair(
        names=(found.class_names[first], found.class_names[second]),
        wrong=pair.wrong,
        sizes=pair.queries,
        queries=[query_of(found, near, row, 1, place) for row in pair.examples],
    )


def margins(found: Evaluated, near: Neighbours) -> Figure | None:
    """How much nearer the first right image is than the first wrong one, over all queries."""
    values = near.margin[np.isfinite(near.margin)]
    if not len(values):
        return None
    unit = gallery.value_name(found.embedded.similarity)
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    ahead = int((values > 0).sum())
    caption = (
        f"Margin of {page_text.plural(len(values), 'query')}: the {unit} of the "
        f"nearest image of the same class against that of the nearest image of another. "
        f"{ahead:,} are above 0. Median {middle:.3f}, the middle 80 % from {low:.3f} to {high:.3f}."
    )
    caption = caption.replace(" -", " −")
    svg = figures.histogram(values, title=caption, x_name=f"margin ({unit})")
    return Figure(svg, caption)
