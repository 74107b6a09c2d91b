"""`dml-eval`: evaluate runs, timm models off the shelf or saved embeddings; compare two runs.

Nothing at the top imports torch; `eval_request` checks the words before anything slow begins.
"""

import csv
import dataclasses
import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from dml import build, comparison, embedding_files, record, tables
from dml.config import pins
from dml.embedding_files import Embedded
from dml.eval_request import Request, Subject, checked

if TYPE_CHECKING:
    from dml.evaluation import Result

log = logging.getLogger("dml")

HELP = """Evaluate encoders and embeddings, and compare runs.

  dml-eval run=DIR                                the encoder of a finished run on its own test classes
  dml-eval run=DIR data=folder data.root=OTHER    on other data, its test split
  dml-eval run=DIR split=val evaluation.metrics=[recall@1,map@r]
  dml-eval runs=[DIR,DIR,DIR,DIR]                 seeds or folds: mean, standard deviation and 95 % interval,
                                                  and the concatenated embeddings of all
  dml-eval compare=[DIR,DIR]                      second less first, 95 % intervals and p-values
  dml-eval backbone=resnet50 head=none data=cub200 data.root=DIR
                                                  a timm model's pooled features, without training
  dml-eval experiment=zero_dino_vits16_cub200 data.root=DIR
                                                  an experiment without training
  dml-eval backbone=timm backbone.name=vit_small_patch16_224 head.pooling=native data=...
  dml-eval encoder=BUNDLE data=...                an exported encoder, with its own preprocessing
  dml-eval embeddings_file=FILE.npz               arrays embeddings [n, d], labels [n]; where wanted
                                                  ids [n], is_query [n]; also .parquet
  dml-eval embeddings_file=FILE.npy labels=FILE   labels: .npy, or .csv with a column label

  dml-eval run=DIR post=[pca_whiten,query_expansion] post.query_expansion.neighbours=5
                                                  steps after the encoder, beside the plain numbers: flip,
                                                  multi_scale, truncate, pca, pca_whiten, query_expansion,
                                                  database_augmentation, k_reciprocal, diffusion
  dml-eval run=DIR compress=true                  recall, bytes and speed of compressed embeddings

Images: data=..., data.*, split=train|val|test|all, loader.*
Metrics: evaluation.*; similarity=cosine|dot|euclidean for an embeddings_file
compare draws resamples=10000 times, from seed=0.
Written: a record, beside the run or file or in out=DIR; embeddings=FILE.npz saves what was embedded,
per_query=FILE.npz each query's metrics, per_class=FILE.csv each class's means.
A path with commas goes into quotes: runs="['a,b','c']".
"""


def run(words: list[str]) -> int:
    """Do as the words say; returns the exit code.

    Raises ConfigurationError with everything wrong with the words, RunError where the work fails.
    """
    if not words or any(word in ("--help", "-h") for word in words):
        print(HELP)
        return 0 if words else 2
    request = checked(words)
    if request.source == "compare":
        result, name = compare(request), f"comparison_{request.data}_{request.split}"
    elif request.source == "runs":
        result, name = evaluate_runs(request), f"evaluation_{request.data}_{request.split}"
    elif request.embedded is not None:
        result, name = evaluate_file(request.embedded, request), f"evaluation_{request.data}"
    else:
        result, name = evaluate_encoder(request), f"evaluation_{request.data}_{request.split}"
    log.info(
        "Written: %s", record.write_json(record.sealed(result), request.out() / f"{name}.json")
    )
    return 0


def evaluate_encoder(request: Request) -> dict[str, Any]:
    """Evaluate a run's encoder, or a model off the shelf."""
    from dml import measure

    (subject,) = request.subjects
    embedded, told = measure.embed_images(
        subject.run, subject.config, subject.index, request.split, bundle=subject.bundle
    )
    if subject.bundle is not None:
        what, name = {"encoder": subject.bundle}, "exported"
    elif subject.run is None:
        backbone = build.plain(subject.config.backbone)
        what = {"backbone": backbone, "head": build.plain(subject.config.head)}
        what |= experiment_entries(subject.config)
        name = f"{backbone['name']}, pooled"
    else:
        finished = record.read(subject.run)
        what = {"run": str(subject.run), "checkpoint": finished["checkpoint"]}
        name = "trained"
    return evaluated(request, embedded, what | told, name)


def experiment_entries(config: DictConfig) -> dict[str, Any]:
    """What a record says of the experiment it belongs to, and of the weights where a file gave them."""
    groups = {key: build.plain(config[key]) for key in ("data", "backbone", "head", "evaluation")}
    return {
        "experiment": config.experiment,
        "claim": None if config.claim is None else build.plain(config.claim),
        "pins": list(config.pins),
        "unpin": config.unpin,
        "config": groups,
        "weights": record.weights_file(config.backbone.weights),
    }


def evaluate_file(embedded: Embedded, request: Request) -> dict[str, Any]:
    """Evaluate saved embeddings."""
    path = Path(request.config.embeddings_file).expanduser()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    what = {"embeddings_file": str(path), "data": {"name": request.data, "fingerprint": digest}}
    return evaluated(request, embedded, what, "embeddings")


def evaluated(
    request: Request, embedded: Embedded, what: dict[str, Any], name: str
) -> dict[str, Any]:
    """Measure embeddings, print the table, save what is asked for; returns the record.

    what: the record's entries about the encoder and the data.  name: the table's column.
    """
    from dml import measure

    config = request.subjects[0].config if request.subjects else request.config
    found = measure.measure(embedded, config)
    if config.embeddings is not None:
        path = embedding_files.save(embedded, Path(config.embeddings).expanduser())
        log.info("Embeddings: %s", path)
    if config.per_query is not None:
        log.info("Per query: %s", found.save_per_query(Path(config.per_query).expanduser()))
    if config.per_class is not None:
        names = (
            request.subjects[0].index.part(request.split).class_names if request.subjects else ()
        )
        log.info("Per class: %s", save_per_class(found, names, Path(config.per_class).expanduser()))
    groups = ("data", "evaluation", "loader") if request.subjects else ("evaluation",)
    roles = {}
    if embedded.is_query is not None:
        roles = {"queries": found.num_queries, "gallery": found.gallery_size}
    result = {
        "format": record.FORMAT,
        **stamp(),
        **what,
        "split": request.split if request.subjects else "all",
        "images": len(embedded),
        "classes": len(np.unique(embedded.labels)),
        **roles,
        "lone_queries": found.lone_queries,
        "dim": embedded.embeddings.shape[1],
        "similarity": found.similarity,
        "protocol": found.protocol,
        "options": {group: build.plain(config[group]) for group in groups},
        "metrics": found.metrics,
    }
    if config.post:
        from dml.postprocessing import postprocessed

        result["post"] = postprocessed(request, embedded)
    tables.evaluation(result, name)
    if config.compress:
        from dml import compression_report, postprocessing

        train = postprocessing.training(request)
        file = f"compression_{request.data}_{result['split']}"
        rows = compression_report.compressed(embedded, train, file, request.out())
        result["compression"] = rows
    return result


def evaluate_runs(request: Request) -> dict[str, Any]:
    """Each run by itself, their mean and interval, and their embeddings side by side."""
    from dml import measure

    names = [str(subject.run) for subject in request.subjects]
    if unlike := different_options(request.subjects):
        log.warning("These runs differ in %s: their mean is of unlike things.", ", ".join(unlike))
    parts, metrics, told = [], [], {}
    for subject in request.subjects:
        embedded, told = measure.embed_images(
            subject.run, subject.config, subject.index, request.split
        )
        metrics.append(measure.measure(embedded, request.subjects[0].config).metrics)
        parts.append(embedded)
    spreads = comparison.spreads(metrics)
    tables.runs(names, spreads)
    what = {
        "runs": dict(zip(names, metrics, strict=True)),
        "records": {str(s.run): record.read(s.run)[record.SEAL] for s in request.subjects if s.run},
        "separated": {name: dataclasses.asdict(found) for name, found in spreads.items()},
        "data": told["data"],
        "class_disjoint": told["class_disjoint"],
    }
    return evaluated(request, measure.concatenated(parts), what, f"{len(parts)} concatenated")


def different_options(subjects: list[Subject]) -> list[str]:
    """Options, beside the seed and the fold, that the runs were trained with different values of."""
    configs = [pins.dotted(record.read(s.run)["config"]) for s in subjects if s.run is not None]
    may = ("seed", "data.fold", "run_dir", "ckpt_path", "dry_run", "loader.", "logger.")
    keys = sorted({key for config in configs for key in config if not key.startswith(may)})
    return [key for key in keys if any(c.get(key) != configs[0].get(key) for c in configs)]


def compare(request: Request) -> dict[str, Any]:
    """Second run less first, as queries and as classes are drawn again."""
    first, second = (per_query(subject, request.split) for subject in request.subjects)
    names = [str(subject.run) for subject in request.subjects]
    config, index = request.subjects[0].config, request.subjects[0].index
    rows = comparison.compare(first, second, resamples=config.resamples, seed=config.seed)
    result = {
        "format": record.FORMAT,
        **stamp(),
        "runs": names,
        "data": {"name": index.name, "fingerprint": index.fingerprint((request.split,))},
        "split": request.split,
        "queries": int((first.relevant > 0).sum()),
        "classes": len(np.unique(first.labels[first.relevant > 0])),
        "bootstrap": {"resamples": config.resamples, "seed": config.seed, "interval": "percentile"},
        "differences": [dataclasses.asdict(row) for row in rows],
    }
    tables.comparison(result, rows)
    return result


def per_query(subject: Subject, split: str) -> comparison.PerQuery:
    """A run's values for each query: kept from an earlier comparison, or evaluated now."""

    def evaluate() -> comparison.PerQuery:
        from dml import measure

        embedded, _ = measure.embed_images(run, subject.config, subject.index, split)
        found = measure.measure(embedded, subject.config)
        return comparison.PerQuery(found.ids, found.labels, found.relevant, found.per_query)

    run, options = subject.run, subject.config.evaluation
    assert run is not None
    fingerprint = subject.index.fingerprint((split,))
    key = comparison.key_of(run, fingerprint, split, options.metrics, options.backend)
    path = run / f"per_query_{subject.index.name}_{split}.npz"
    return comparison.kept(path, key, evaluate)


def save_per_class(found: "Result", names: Sequence[str], path: Path) -> Path:
    """Write a table of classes: label, class (its name, where there is one), queries, metrics."""
    columns = found.per_class()
    columns = {
        "label": columns["label"],
        "class": np.array([names[label] if names else label for label in columns["label"]]),
        **columns,
    }
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    with record.aside(path) as file:
        file.write(text.getvalue().encode())
    return path


def stamp() -> dict[str, Any]:
    """How to make a number again: the command line, the code and the versions."""
    return {
        "command": record.command(),
        "code": record.code_state(),
        "versions": record.versions(),
    }
