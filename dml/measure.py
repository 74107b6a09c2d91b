"""Embed images with an encoder, and evaluate the embeddings: what a run does at its end, and dml-eval."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from dml import build, checkpoint_file, distributed, record
from dml.bundle import load_encoder
from dml.config import saved
from dml.data.images import BadImages
from dml.data.index import SPLITS, ImageIndex, ImageSet
from dml.data.loaders import eval_loader
from dml.data.preprocess import Preprocess
from dml.data.progress import share_bar
from dml.embedding_files import Embedded
from dml.encoder import Encoder
from dml.errors import RunError
from dml.evaluation import Result, evaluate_detailed
from dml.evaluation.views import averaged


def evaluation_options(config: DictConfig, similarity: str) -> dict[str, Any]:
    """Keyword arguments of `evaluate`."""
    return {
        "metrics": tuple(config.evaluation.metrics),
        "average": config.evaluation.average,
        "backend": config.evaluation.backend,
        "similarity": similarity,
    }


def embed_split(
    config: DictConfig,
    index: ImageIndex,
    split: str,
    encoders: dict[str, Callable[[Tensor], Tensor]],
    preprocess: Preprocess,
    device: torch.device,
    bad_images: BadImages,
) -> dict[str, Embedded]:
    """`embed` over one split, with a progress bar.  Returns name of the encoder -> its embeddings.

    Several processes embed a part each; the first returns all, the others their own.
    """
    part = index.part(split)
    batches = eval_loader(
        part,
        preprocess,
        config.loader.eval_batch_size,
        config.loader.num_workers,
        positions=distributed.share_of(len(part)),
    )
    bar = track(
        batches,
        f"{index.name}, {split} images",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty() or not distributed.is_first(),
    )
    vectors, labels, ids = embed(encoders, bar, bad_images, device)
    readable = np.isin(part.ids, ids)
    return {
        name: Embedded(
            embeddings=found,
            labels=labels,
            ids=ids,
            is_query=None if part.is_query is None else part.is_query[readable],
            paths=part.relative_paths[readable].astype(str),
        )
        for name, found in vectors.items()
    }


@torch.no_grad()
def embed(
    encoders: dict[str, Callable[[Tensor], Tensor]],
    batches: Any,
    bad_images: BadImages,
    device: torch.device,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Run several functions over the same images, each read once.

    encoders: name -> (images uint8 [n, 3, h, w] -> vectors [n, d]), already in evaluation mode and on
    `device`.  Returns name -> float32 [N, d], labels int64 [N], ids int64 [N], in the order of the batches.
    Of several processes the first returns what all have read, each image once, the others their own.
    """
    vectors: dict[str, list[Tensor]] = {name: [] for name in encoders}
    labels, ids = [], []
    for batch in batches:
        bad_images.check(batch)
        if len(batch.labels) == 0:
            continue
        images = batch.images.to(device)
        for name, encoder in encoders.items():
            vectors[name].append(encoder(images).float().cpu())
        labels.append(batch.labels)
        ids.append(batch.ids)
    none = torch.empty(0, dtype=torch.int64)
    all_ids, all_labels, *found = distributed.collected(
        torch.cat([*ids, none]),
        torch.cat([*labels, none]),
        *(torch.cat(parts) if parts else torch.empty(0, 0) for parts in vectors.values()),
    )
    if len(all_ids) == 0 and distributed.is_first():
        raise RunError("no image could be read.")
    named = zip(vectors, found, strict=True)
    return (
        {name: tensor.numpy() for name, tensor in named},
        all_labels.numpy(),
        all_ids.numpy(),
    )


def measure(embedded: Embedded, config: DictConfig) -> Result:
    """`evaluate`, queries against the gallery where items have these roles, else all against all.

    Raises RunError: embeddings that cannot be evaluated, such as those of an encoder that diverged.
    """
    vectors, query = torch.from_numpy(embedded.embeddings), embedded.is_query
    if query is None:
        return measure_sets(vectors, None, embedded, config)
    mask = torch.from_numpy(query)
    return measure_sets(vectors[mask], vectors[~mask], embedded, config)


def measure_sets(
    query: Tensor, gallery: Tensor | None, embedded: Embedded, config: DictConfig
) -> Result:
    """`measure` with other vectors for the same items, in the same order.

    gallery None: the queries.  Where items have no roles a gallery holds all of them, too, and each is
    left out of its own results.
    """
    options = evaluation_options(config, embedded.similarity)
    labels, ids, is_query = embedded.labels, embedded.ids, embedded.is_query
    of_query, of_gallery = slice(None), slice(None)
    if is_query is not None:
        of_query, of_gallery = is_query, ~is_query
    if options["backend"] != "faiss":
        query = query.to(default_device())
    others = {}
    if gallery is not None:
        others = {"gallery_labels": labels[of_gallery], "gallery_ids": ids[of_gallery]}
    try:
        with share_bar("Evaluating") as progress:
            return evaluate_detailed(
                query,
                labels[of_query],
                gallery,
                query_ids=ids[of_query],
                progress=progress,
                **others,
                **options,
            )
    except ValueError as error:
        raise RunError(f"these embeddings cannot be evaluated: {error}.") from error


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_encoder_weights(encoder: Encoder, checkpoint: Path, *, averaged: bool = True) -> None:
    """Encoder weights out of a training checkpoint, strictly.

    averaged: the averages along training, where there are any; else the weights of that step.

    Raises RunError: no checkpoint, a damaged one, or one of another encoder.
    """
    if not checkpoint.is_file():
        raise RunError(f"the checkpoint {checkpoint} is gone.")
    try:
        state = checkpoint_file.read(checkpoint)["state_dict"]
        prefix = "averaged.encoder."
        if not averaged or not any(key.startswith(prefix) for key in state):
            prefix = "encoder."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        encoder.load_state_dict(own)
    except Exception as error:  # a damaged or foreign file can fail in any way
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise RunError(
            f"{checkpoint} does not hold the weights of this encoder ({type(error).__name__}: {reason}).\n"
            "It is damaged or of another run. Copy it again, or train again."
        ) from error


def run_encoder(run: Path) -> tuple[Encoder, str]:
    """The encoder of a finished run with the weights that were chosen, and its similarity.

    Raises RunError: a record that cannot be believed, or from which no encoder can be built.
    """
    finished = record.read(run)
    config = saved.of_record(finished, run, saved.ENCODER)
    checkpoint = saved.checkpoint_of(finished, run)
    told = saved.protocol_of(finished, run)
    config.backbone.pretrained, config.backbone.weights = False, None  # the checkpoint has them all
    try:
        encoder = build.encoder(config, normalize=told["normalized"])
    except Exception as error:  # what a network makes of its arguments can fail in any way
        raise RunError(
            f"the encoder of {run} cannot be built from its {record.FILE}: {error}"
        ) from error
    load_encoder_weights(encoder, checkpoint)
    return encoder, told["similarity"]


def untrained_encoder(config: DictConfig, normalize: bool | None = None) -> Encoder:
    """The encoder of a run as it was before training, built again from its seed.

    normalize: as for `build.encoder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build.encoder(config, normalize)


def before_training(untrained: Encoder) -> dict[str, Callable[[Tensor], Tensor]]:
    """What a trained encoder is held against, for `embed`, in this order.

    frozen: the trunk's pooled features.  untrained: the embeddings of the encoder as initialised.
    """
    shared: dict[str, Tensor] = {}

    def frozen(images: Tensor) -> Tensor:
        shared["pooled"] = untrained.pooled(images)
        return shared["pooled"]

    def initialised(images: Tensor) -> Tensor:
        del images  # `frozen` ran just before: one pass of the trunk serves both
        return untrained.embed(shared.pop("pooled"))

    return {"frozen": frozen, "untrained": initialised}


def embed_images(
    run: Path | None,
    config: DictConfig,
    index: ImageIndex,
    split: str,
    views: Sequence[Callable[[Tensor], list[Tensor]]] = (),
    *,
    bundle: str | None = None,
) -> tuple[Embedded, dict[str, Any]]:
    """Embed one split with the encoder of a run or of a bundle, or (both None) the backbone of `config`.

    config: what `data` and `loader` to use.  views: test-time augmentation.  Returns the
    embeddings and what a record says of them.
    """
    fingerprint = {}
    if bundle is not None:
        exported = load_encoder(bundle)
        encoder, similarity = exported.model, exported.geometry
        fingerprint = {"fingerprint": exported.fingerprint}
    elif run is None:
        encoder, similarity = build.encoder(config, normalize=True), "cosine"
    else:
        encoder, similarity = run_encoder(run)
    device = default_device()
    encoder.to(device).eval()
    bad_images = BadImages(config.data.on_bad_image)
    found = embed_split(
        *(config, index, split, {"encoder": averaged(encoder, views) if views else encoder}),
        *(encoder.preprocess, device, bad_images),
    )
    told = fingerprint | {
        "data": describe_data(index, bad_images),
        "class_disjoint": index.class_disjoint,
        "preprocess": encoder.preprocess.as_dict(),
        "normalized": encoder.normalize,
    }
    return replace(found["encoder"], similarity=similarity), told


def concatenated(parts: list[Embedded]) -> Embedded:
    """Several encoders' embeddings of the same images side by side, each of length 1.

    As the concatenated results of Musgrave et al., ECCV 2020, arXiv:2003.08505.

    Raises RunError: not the same images.
    """
    if any(not np.array_equal(part.ids, parts[0].ids) for part in parts):
        raise RunError("the runs did not embed the same images; some could not be read by all.")
    vectors = [torch.nn.functional.normalize(torch.from_numpy(p.embeddings)) for p in parts]
    return replace(parts[0], embeddings=torch.cat(vectors, dim=1).numpy(), similarity="cosine")


def describe_data(index: ImageIndex, bad_images: BadImages) -> dict[str, Any]:
    """Name, fingerprint, counts of every split, and what could not be read."""
    parts = {split: index.part(split) for split in SPLITS}
    return {
        "name": index.name,
        "fingerprint": index.fingerprint(),
        "splits": {
            s: {"images": len(p), "classes": p.num_classes} | roles(p) for s, p in parts.items()
        },
        "unreadable": dict(bad_images.skipped),
    }


def roles(part: ImageSet) -> dict[str, int]:
    """How many images are queries and how many are the gallery, where an image is only one of them."""
    if part.is_query is None:
        return {}
    return {"queries": int(part.is_query.sum()), "gallery": int((~part.is_query).sum())}
