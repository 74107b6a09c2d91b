"""The embedding map of a run's page."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from dml.report import embedding_map
from dml.report.gallery import Neighbours
from dml.report.page_evaluation import Evaluated

log = logging.getLogger("dml")


MAP_WIDTH, MAP_HEIGHT, MAP_EDGE = 1000, 640, 24
RIGHT, WRONG, NOT_ASKED = "right", "wrong", "other"


@dataclass(frozen=True)
class Map:
    """The embedding map.

    points: what the page draws, in order.  data: what its script reads.  counts: mark -> points.
    """

    points: list[dict[str, Any]]
    data: dict[str, Any]
    told: list[str]
    names: list[str]
    counts: dict[str, int]
    total: int
    classes: int
    missing: str


def map_of(found: Evaluated, near: Neighbours, shown: np.ndarray, seed: int) -> Map:
    """Points of the items `shown` in every projection there is."""
    embedded = found.embedded
    projections = [embedding_map.pca(embedded, shown)]
    missing = ""
    if not embedding_map.umap_installed():
        missing = "UMAP is not installed here (pip install 'dml[umap]'), so there is only PCA."
    elif len(shown) < embedding_map.UMAP_LEAST:
        missing = f"UMAP needs {embedding_map.UMAP_LEAST} images or more."
    else:
        log.info("UMAP of %d images ...", len(shown))
        projections.append(embedding_map.umap(embedded, shown, seed))
    nearest = np.full(len(embedded), -1)
    nearest[near.query] = near.nearest[:, 0]
    asked = np.zeros(len(embedded), dtype=bool)
    asked[near.query] = near.right >= 0
    right = embedded.labels[nearest] == embedded.labels
    marks = [(RIGHT if right[i] else WRONG) if asked[i] else NOT_ASKED for i in shown]
    place = {int(item): number for number, item in enumerate(shown)}
    used, codes = np.unique(
        np.concatenate([embedded.labels[shown], embedded.labels[nearest[shown]]]),
        return_inverse=True,
    )
    own, others = np.split(codes, 2)
    layouts = [fitted(projection.points) for projection in projections]
    assert embedded.paths is not None
    points = [
        {"x": x, "y": y, "mark": mark, "name": found.class_names[embedded.labels[item]]}
        for (x, y), mark, item in zip(layouts[0], marks, shown, strict=True)
    ]
    data = {
        "layouts": layouts,
        "classes": [found.class_names[label] for label in used],
        "of": own.tolist(),
        "mark": marks,
        "nearest": [place.get(int(nearest[item]), -1) for item in shown],
        "nearestClass": [
            int(c) if m != NOT_ASKED else -1 for c, m in zip(others, marks, strict=True)
        ],
        "item": shown.tolist(),
        "path": [str(embedded.paths[item]) for item in shown],
    }
    return Map(
        points=points,
        data=data,
        told=[projection.told for projection in projections],
        names=[projection.name for projection in projections],
        counts={mark: marks.count(mark) for mark in (RIGHT, WRONG, NOT_ASKED)},
        total=len(embedded),
        classes=len(np.unique(embedded.labels[shown])),
        missing=missing,
    )


def fitted(points: np.ndarray) -> list[list[float]]:
    """Points moved and scaled, both axes alike, into the picture; y upwards."""
    low, high = points.min(0), points.max(0)
    room = np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * MAP_EDGE
    factor = float((room / np.maximum(high - low, 1e-12)).min())
    centred = (points - (low + high) / 2) * factor * (1, -1)
    return (centred + np.array([MAP_WIDTH, MAP_HEIGHT]) / 2).round(1).tolist()
