"""The test split of a finished run, embedded and evaluated again: what its page is made of."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from dml import build, record
from dml.config import saved
from dml.data.index import ImageIndex, ImageSet
from dml.embedding_files import Embedded
from dml.errors import ConfigurationError, Problem, RunError
from dml.evaluation.statistics import Difference, paired_bootstrap

if TYPE_CHECKING:
    from dml.data.preprocess import Preprocess
    from dml.evaluation import Result

log = logging.getLogger("dml")

ENCODERS = ("frozen", "untrained", "test")  # as metrics.* of a record names them
TOLERANCE = 1e-6  # between a metric of the record and the same metric made again
ELSEWHERE = ("data.root", "data.labels", "data.cache_dir", "backbone.weights", "data._target_")


@dataclass(frozen=True)
class Mismatch:
    """A metric that did not come out as the record has it."""

    encoder: str
    metric: str
    recorded: float
    again: float


@dataclass(frozen=True)
class Evaluated:
    """A finished run and its test split.

    finished: the record.  images: the test split.  results: frozen, untrained, test -> what evaluation
    found.  embedded: the trained encoder's embeddings of the images that can be read.  rows: int64 [n],
    where `images` has each of them.  preprocess: what the encoder sees of an image.
    """

    run: Path
    finished: dict[str, Any]
    images: ImageSet
    results: dict[str, "Result"]
    embedded: Embedded
    rows: np.ndarray
    preprocess: "Preprocess"
    mismatches: list[Mismatch]

    @property
    def class_names(self) -> tuple[str, ...]:
        """`class_names[label]`."""
        return self.images.class_names

    def path(self, item: int) -> Path:
        """File of the image in row `item` of the embeddings."""
        return self.images.path(int(self.rows[item]))


def evaluate(run: Path, elsewhere: Mapping[str, str] | None = None) -> Evaluated:
    """Embed the test split with the frozen trunk, the untrained and the trained encoder, and evaluate all.

    elsewhere: options of the run, of ELSEWHERE, whose files lie in another place now.  Metrics that differ
    from the record's are returned, and told in the log.

    Raises RunError: no finished run, its checkpoint is gone, or other images than it was tested on.
    ConfigurationError: images or the trunk's weights are not where the record says, or `elsewhere` names
    other options.
    """
    import torch

    from dml import measure
    from dml.data.images import BadImages

    finished = record.read(run)
    config = config_of(finished, run, elsewhere or {})
    index = build.index(config)
    check_images(index, finished)
    trained, similarity = measure.run_encoder(run)
    untrained = measure.untrained_encoder(config, trained.normalize)
    # On the kind of device that made the record's numbers, so that they come out the same.
    on_cpu = finished["hardware"]["device"] == "cpu"
    device = torch.device("cpu") if on_cpu else measure.default_device()
    for encoder in (trained, untrained):
        encoder.to(device).eval()
    found = measure.embed_split(
        config,
        index,
        "test",
        {**measure.before_training(untrained), "test": trained},
        trained.preprocess,
        device,
        BadImages(config.data.on_bad_image),
    )
    results = {
        name: measure.measure(
            replace(found[name], similarity="cosine" if name == "frozen" else similarity), config
        )
        for name in ENCODERS
    }
    images, embedded = index.part("test"), replace(found["test"], similarity=similarity)
    mismatches = compared(finished, results)
    for one in mismatches:
        log.warning(
            "NOT THE RECORD'S NUMBER: %s %s is %.6f in the record and %.6f now, from the same files.",
            *(label(one.encoder), one.metric, one.recorded, one.again),
        )
    return Evaluated(
        run=run,
        finished=finished,
        images=images,
        results=results,
        embedded=embedded,
        rows=np.flatnonzero(np.isin(images.ids, embedded.ids)),
        preprocess=trained.preprocess,
        mismatches=mismatches,
    )


def config_of(finished: Mapping[str, Any], run: Path, elsewhere: Mapping[str, str]) -> DictConfig:
    """The record's configuration, files where they lie now, Recall@1 among the metrics.

    Raises ConfigurationError: an option that says nothing of where files lie.
    """
    typed = [f"{key}={value}" for key, value in elsewhere.items()]
    config = saved.of_record(finished, run, saved.EVALUATED, typed)
    for key, value in elsewhere.items():
        if key not in ELSEWHERE:
            what = "is part of what was run. A page takes where files lie now: "
            raise ConfigurationError([Problem(f"{key}={value}", f"{what}{', '.join(ELSEWHERE)}.")])
        OmegaConf.update(config, key, value)
    metrics = list(config.evaluation.metrics)
    if "recall@1" not in metrics:
        config.evaluation.metrics = ["recall@1", *metrics]
    return config


def check_images(index: ImageIndex, finished: Mapping[str, Any]) -> None:
    """Raise RunError unless the index is that of the record."""
    if index.fingerprint() == finished["data"]["fingerprint"]:
        return
    part, then = index.part("test"), finished["data"]["splits"]["test"]
    raise RunError(
        f"the images at {index.root} are not those of this run: file names, classes or splits differ "
        f"({len(part)} test images of {part.num_classes} classes now, {then['images']} of "
        f"{then['classes']} then).\nPut the data back as it was, or say where it lies: data.root=DIR."
    )


def compared(finished: Mapping[str, Any], results: Mapping[str, "Result"]) -> list[Mismatch]:
    """Every metric of the record that did not come out again."""
    return [
        Mismatch(name, metric, recorded, again)
        for name, result in results.items()
        for metric, recorded in finished["metrics"][name].items()
        if abs((again := result.metrics[metric]) - recorded) > TOLERANCE
    ]


def label(encoder: str) -> str:
    """What tables call an encoder of the record's metrics."""
    return "trained" if encoder == "test" else encoder


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of each encoder's metrics and of what training gained.

    over: what was drawn, "queries" or "classes".  values: (encoder, metric) -> interval.  gains: metric ->
    trained less untrained.  Metrics that have no value per query are in neither.
    """

    over: str
    values: dict[tuple[str, str], Difference]
    gains: dict[str, Difference]


def intervals(found: Evaluated) -> Intervals:
    """Bootstrap over the queries; of means over classes (evaluation.average=macro), over the classes."""
    macro = found.finished["config"]["evaluation"]["average"] == "macro"
    metrics = list(found.results["test"].per_query)
    columns = {name: columns_of(result, metrics, macro) for name, result in found.results.items()}
    stacked = np.concatenate([*columns.values(), columns["test"] - columns["untrained"]], axis=1)
    drawn = iter(paired_bootstrap(stacked) if metrics else ())
    values = {(name, metric): next(drawn) for name in columns for metric in metrics}
    gains = {metric: next(drawn) for metric in metrics}
    return Intervals("classes" if macro else "queries", values, gains)


def columns_of(result: "Result", metrics: list[str], macro: bool) -> np.ndarray:
    """The values whose mean the metrics are, float64 [queries or classes, metrics]."""
    if macro:
        of_class = result.per_class()
        return np.stack([of_class[metric] for metric in metrics], axis=1)
    counted = result.relevant > 0
    return np.stack([result.per_query[metric][counted] for metric in metrics], axis=1)
