"""What is wrong with `post=[...]` and `compress=true` of a `dml-eval` command line.

Torch-free, as everything before the work.
"""

from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from dml import build, bundle_format, record
from dml.config import check, saved
from dml.config.post import PostSchema, order_problems
from dml.embedding_files import Embedded
from dml.errors import Problem


def steps(config: DictConfig) -> dict[str, type[PostSchema]]:
    """The chosen steps in order: name -> schema class, which says what the step demands."""
    return {str(name): build.schema_of(config.post, name) for name in config.post}


def problems(
    config: DictConfig,
    run: Path | None,
    bundle: str | None,
    embedded: Embedded | None,
    queries_apart: bool,
) -> list[Problem]:
    """Values out of range, steps that cannot follow each other, and those the data cannot serve.

    run, bundle: what is evaluated, if it is one of these; a bundle on a hub is not looked at.
    embedded: the embeddings of a file, if there is one.
    queries_apart: whether the evaluated data have a gallery apart from the queries.
    """
    chosen = steps(config)
    if not chosen and not config.compress:
        return []
    found = [p for name in chosen for p in check.node_problems(config, f"post.{name}")]
    found += order_problems(chosen)
    options = [*(f"post={name}" for name in chosen), *["compress=true"] * config.compress]
    similarity = "cosine"
    if embedded is not None:
        similarity = embedded.similarity
    elif run is not None:
        similarity = saved.protocol_of(record.read(run), run)["similarity"]
    elif bundle is not None and not bundle.startswith(bundle_format.HUB):
        similarity = bundle_format.read(Path(bundle).expanduser()).geometry
    if similarity != "cosine":
        what = f"compares by cosine, and these embeddings are compared by {similarity}."
        found += [Problem(option, what) for option in options]
    for name, step in chosen.items():
        if step.stage == "images" and embedded is not None:
            what = "changes the images before the encoder, and an embeddings_file has none."
            found.append(Problem(f"post={name}", what))
        if step.apart and not queries_apart:
            what = "mixes each query into the gallery where they are one set, as in this data."
            found.append(Problem(f"post={name}", what))
    fitted = [f"post={name}" for name, step in chosen.items() if step.fitted]
    fitted += ["compress=true"] * config.compress
    for option in fitted:
        if embedded is not None and config.train_embeddings is None:
            what = (
                "is fitted on training embeddings. Add train_embeddings=FILE, as embeddings_file."
            )
            found.append(Problem(option, what))
        elif embedded is None and config.split in ("train", "all"):
            what = f"is fitted on the training images, and split={config.split} evaluates them."
            found.append(Problem(option, what))
    if config.compress and find_spec("matplotlib") is None:
        found.append(Problem("compress=true", "draws with matplotlib: pip install 'dml[train]'."))
    return found
