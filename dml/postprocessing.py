"""Post-processing and compression of what `dml-eval` embedded, beside the plain numbers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dml import build, embedding_files, measure, post_options
from dml.embedding_files import Embedded
from dml.errors import RunError
from dml.eval_request import Request
from dml.evaluation.names import parse
from dml.evaluation.postprocess import Sets
from dml.evaluation.similarities import evaluate_similarities

Views = Sequence[Callable]


def postprocessed(request: Request, embedded: Embedded) -> dict[str, Any]:
    """The chosen steps and the metrics after them; a re-ranking has those of rankings only.

    Raises RunError: a step that these embeddings do not allow.
    """
    config = request.subjects[0].config if request.subjects else request.config
    chosen = {
        name: (schema, build.constructor(config.post[name]))
        for name, schema in post_options.steps(config).items()
    }
    views = [step for schema, step in chosen.values() if schema.stage == "images"]
    if views:
        embedded = embedded_again(request, request.split, views)
    train = None
    if any(schema.fitted for schema, _ in chosen.values()):
        train = torch.from_numpy(training(request, views).embeddings)
    sets, similarities = sets_of(embedded, train), None
    for name, (schema, step) in chosen.items():
        try:
            if schema.stage == "vectors":
                sets = step(sets)
            elif schema.stage == "ranking":
                similarities = step(sets)
        except ValueError as error:
            raise RunError(f"post={name}: {error}.") from error
    if similarities is None:
        metrics = measure.measure_sets(sets.query, sets.gallery, embedded, config).metrics
    else:
        metrics = ranking_metrics(similarities, sets, embedded, config)
    return {"steps": build.plain(config.post), "metrics": metrics}


def ranking_metrics(similarities: Any, sets: Sets, embedded: Embedded, config: Any) -> dict:
    """Metrics of a re-ranking."""
    labels, query = embedded.labels, embedded.is_query
    wanted = [name for name in config.evaluation.metrics if parse(name).family == "ranks"]
    query_labels, gallery_labels = labels, labels
    if query is not None:
        query_labels, gallery_labels = labels[query], labels[~query]
    try:
        with measure.share_bar("Re-ranking") as progress:
            return evaluate_similarities(
                similarities,
                query_labels,
                gallery_labels,
                sets.own,
                metrics=wanted,
                average=config.evaluation.average,
                progress=progress,
            )
    except ValueError as error:
        raise RunError(f"these embeddings cannot be re-ranked: {error}.") from error


def sets_of(embedded: Embedded, train: torch.Tensor | None) -> Sets:
    """Queries and gallery of embeddings, where items have these roles."""
    vectors, query = torch.from_numpy(embedded.embeddings), embedded.is_query
    if query is None:
        return Sets(vectors, None, np.arange(len(vectors)), train)
    mask = torch.from_numpy(query)
    return Sets(vectors[mask], vectors[~mask], np.full(int(query.sum()), -1), train)


def training(request: Request, views: Views = ()) -> Embedded:
    """Embeddings of the training images by the encoder that is evaluated, or of the file named."""
    if request.embedded is not None:
        path = Path(request.config.train_embeddings).expanduser()
        found = embedding_files.load(path)
        if found.embeddings.shape[1] != request.embedded.embeddings.shape[1]:
            raise RunError(
                f"train_embeddings={path} has {found.embeddings.shape[1]} dimensions, "
                f"the embeddings have {request.embedded.embeddings.shape[1]}."
            )
        return found
    return embedded_again(request, "train", views)


def embedded_again(request: Request, split: str, views: Views) -> Embedded:
    """Embeddings of a split by the encoder that is evaluated, over views of each image."""
    (subject,) = request.subjects
    found, _ = measure.embed_images(
        subject.run, subject.config, subject.index, split, views, bundle=subject.bundle
    )
    return replace(found, similarity="cosine")
