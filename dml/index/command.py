"""`dml-index`: embed a folder of images and make it searchable; add, remove, tune, calibrate, check."""

from collections.abc import Sequence
from typing import Any

from dml.config.options import one_of, parsed, several, share, text, whole
from dml.embedding_files import SIMILARITIES
from dml.errors import ConfigurationError, Problem
from dml.index import opening, servers
from dml.index.changing import add, rebuild, remove
from dml.index.judging import calibrate, check, tune
from dml.index.making import build_from_embeddings, build_from_images

HELP = """Make images searchable.

  dml-index encoder=BUNDLE images=DIR out=INDEX     embed the images of a folder; classes are its
                                                    directories, or those of labels=FILE.csv split=test
  dml-index embeddings=FILE.npz out=INDEX           vectors from elsewhere (.npz or .npy)
  dml-index add=DIR out=INDEX                       embed what is new in a folder (or another one)
  dml-index remove=NAME out=INDEX                   take out images: a path, a directory or a pattern (*.png)
  dml-index calibrate=INDEX fmr=0.001               a threshold for "the same or not" at a false-match
                                                    rate, by its own labels or images=DIR of others
  dml-index tune=INDEX                              other kinds of index: recall, speed, memory
  dml-index rebuild=INDEX index=hnsw                another kind of index; drops what was removed
  dml-index check=INDEX                             is every byte as it was written, are the images there

A stopped command goes on where it was when it is given again.

index=flat|hnsw|ivf_pq|<Faiss factory string> (else chosen by size), parameters=efSearch=64 (Faiss's)
similarity=cosine|dot|euclidean (embeddings alone; an encoder knows its own)
batch_size=64 workers=<cores> device=<cuda where there is one>
store=milvus|qdrant address=URI collection=NAME keeps the vectors in a server, or in Milvus Lite (FILE.db) or
embedded Qdrant (a directory).
"""
EMBED = {"batch_size": whole(1), "workers": whole(1), "device": text}
FOLDER = {"labels": text, "split": text, **EMBED}
INDEX = {"index": text, "parameters": text}
SERVER = {"store": one_of(*servers.KINDS), "address": text, "collection": text}
# Action -> its options beside the word that names it.
OPTIONS: dict[str, dict[str, Any]] = {
    "images": {"encoder": text, "out": text, **FOLDER, **INDEX, **SERVER},
    "embeddings": {
        **{"out": text, "labels": text, "similarity": one_of(*SIMILARITIES)},
        **INDEX,
        **SERVER,
    },
    "add": {"out": text, "encoder": text, **FOLDER},
    "remove": {"out": text},
    "calibrate": {"fmr": share, "images": text, "encoder": text, "embeddings": text, **FOLDER},
    "tune": {"out": text},
    "rebuild": INDEX,
    "check": {"root": text},
}
NEEDED = {
    "images": ("encoder", "out"),
    "embeddings": ("out",),
    "add": ("out",),
    "remove": ("out",),
    "calibrate": ("fmr",),
}


def run(words: list[str]) -> int:
    """Do as the words say; returns the exit code.

    Raises ConfigurationError with everything wrong with the words, RunError where the work fails.
    """
    if not words or any(word in ("--help", "-h") for word in words):
        print(HELP)
        return 0 if words else 2
    action, given = request(words)
    opening.need_faiss()
    return DO[action](given)


def request(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What is to be done, and the values given.  Raises ConfigurationError."""
    keys = [word.partition("=")[0] for word in words]
    named = [key for key in OPTIONS if key in keys]
    if "calibrate" in named:  # which may be told other images to calibrate with
        named = [key for key in named if key not in ("images", "embeddings")]
    if not named:
        everything = {key: text for options in OPTIONS.values() for key in options}
        _, problems = parsed("dml-index", words, everything | dict.fromkeys(OPTIONS, text))
        what = "what is to be done? Add images=DIR, embeddings=FILE, add=DIR, ...; see --help."
        raise ConfigurationError([*problems, Problem("dml-index", what)])
    if len(named) > 1:
        what = (
            f"{' and '.join(f'{key}=...' for key in named)} are different things to do. Keep one."
        )
        raise ConfigurationError([Problem("dml-index", what)])
    action = named[0]
    own = {action: several if action == "remove" else text}
    given, problems = parsed(f"dml-index {action}=...", words, own | OPTIONS[action])
    for key in NEEDED.get(action, ()):
        if key not in keys:
            problems.append(Problem("dml-index", f"{action}=... needs {key}=..."))
    if "store" in given and "address" not in given:
        problems.append(Problem(f"store={given['store']}", "where is it? Add address=URI."))
    for key in ("address", "collection"):
        if key in given and "store" not in given:
            problems.append(
                Problem(f"{key}={given[key]}", "goes with store=milvus or store=qdrant.")
            )
    for key in ("index", "parameters"):
        if key in given and "store" in given:
            problems.append(
                Problem(f"{key}={given[key]}", "is Faiss's; a server has its own index.")
            )
    if "split" in given and "labels" not in given:
        problems.append(Problem(f"split={given['split']}", "is a column of labels=FILE. Add that."))
    if problems:
        raise ConfigurationError(problems)
    return action, given


DO = {
    "images": build_from_images,
    "embeddings": build_from_embeddings,
    "add": add,
    "remove": remove,
    "calibrate": calibrate,
    "tune": tune,
    "rebuild": rebuild,
    "check": check,
}
