"""Which Faiss index, how it is built, and what it costs.

The default follows "Guidelines to choose an index" in the wiki of facebookresearch/faiss: comparison with
every vector while that is quick, HNSW below a million vectors where memory is no concern, and beyond that
inverted lists with compressed vectors.  There, K of IVF lies between 4 sqrt(n) and 16 sqrt(n), and is
trained on 30 K to 256 K vectors.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dml.errors import ConfigurationError, Problem, RunError
from dml.index import files
from dml.index.vectors import BLOCK, Vectors

KINDS = ("flat", "hnsw", "ivf_pq")
FLAT_BELOW = 50_000  # vectors that are compared one by one in milliseconds
HNSW_BELOW = 1_000_000
LINKS = 32  # M of HNSW; the guidelines name 4 to 64
CONSTRUCTION = 80  # efConstruction; more is slower to build and little better
TRAIN_PER_LIST = 64  # vectors per inverted list; the guidelines name 30 to 256
LEAST_PER_LIST = 39  # below which Faiss's k-means warns
PQ_CODES = 256  # of each sub-quantiser
REFINE = 8  # candidates per result that are compared again, where vectors are compressed
HNSW_PARAMETERS, IVF_PARAMETERS = "efSearch=64", "nprobe=32"


@dataclass(frozen=True)
class Recipe:
    """An index before it is built.

    kind: flat | hnsw | ivf_pq, or the factory string itself.  factory: Faiss's index_factory string.
    parameters: of Faiss's ParameterSpace, such as nprobe=32.  refine: candidates per result.
    """

    kind: str
    factory: str
    parameters: str
    refine: int


def recipe(wanted: str | None, count: int, dim: int, parameters: str | None = None) -> Recipe:
    """The recipe for `count` vectors of `dim` numbers; wanted None: chosen by size."""
    kind = wanted or ("flat" if count < FLAT_BELOW else "hnsw" if count < HNSW_BELOW else "ivf_pq")
    if kind == "flat":
        factory, default, refine = "Flat", "", 1
    elif kind == "hnsw":
        factory, default, refine = f"HNSW{LINKS}", HNSW_PARAMETERS, 1
    elif kind == "ivf_pq":
        factory = f"IVF{lists(count)},PQ{sub_quantisers(dim)}"
        default, refine = IVF_PARAMETERS, REFINE
    else:
        factory, default = kind, IVF_PARAMETERS if "IVF" in kind else ""
        default = HNSW_PARAMETERS if kind.startswith("HNSW") else default
        refine = REFINE if compressed(kind) else 1
    return Recipe(kind, factory, default if parameters is None else parameters, refine)


def lists(count: int) -> int:
    """Inverted lists for so many vectors: a power of two near 4 sqrt(n), few enough to train."""
    wanted = 2 ** round(math.log2(4 * math.sqrt(count)))
    return max(1, min(wanted, 2 ** int(math.log2(max(1, count // LEAST_PER_LIST)))))


def sub_quantisers(dim: int) -> int:
    """Bytes of a compressed vector: the most that divide `dim`, up to a quarter of its numbers."""
    return max(m for m in range(1, max(1, dim // 4) + 1) if dim % m == 0)


def compressed(factory: str) -> bool:
    """Whether an index of this factory string compares by less than the vectors themselves."""
    whole = r"(IVF\d+(_HNSW\d+)?|HNSW\d+|NSG\d+|Flat|RFlat)"
    parts = factory.split(",")
    return parts[-1] != "RFlat" and not all(re.fullmatch(whole, part) for part in parts)


def problems(
    wanted: str | None, parameters: str | None, count: int, dim: int, similarity: str
) -> list[Problem]:
    """What is wrong with a factory string or with parameters, for so many vectors of this kind."""
    import faiss

    chosen = recipe(wanted, count, dim, parameters)
    metric = metric_of(similarity)
    try:
        index = faiss.index_factory(dim, chosen.factory, metric)
    except RuntimeError as error:
        what = f"Faiss makes no index of it for {dim} numbers and {similarity}: {reason(error)}\n"
        return [Problem(f"index={wanted}", what + f"Take {', '.join(KINDS)} or a factory string.")]
    if chosen.factory.startswith("IDMap"):
        what = "rows are numbered here; an IDMap has numbers of its own. Leave it out."
        return [Problem(f"index={wanted}", what)]
    try:
        set_parameters(index, chosen.parameters)
    except RuntimeError as error:
        what = f"are none of a Faiss index {chosen.factory}: {reason(error)}"
        return [Problem(f"parameters={chosen.parameters}", what)]
    return []


def reason(error: Exception) -> str:
    """What Faiss says, without where in its code it says so."""
    text = re.sub(r"(?s)^Error in .*? at \S+:\d+: ", "", str(error))
    return text.rsplit("Error: ", 1)[-1].strip().splitlines()[0]


def metric_of(similarity: str) -> int:
    """Faiss's metric: cosines are inner products of unit vectors."""
    import faiss

    return faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT


def build(
    chosen: Recipe,
    vectors: Vectors,
    similarity: str,
    progress: Callable[[float], None],
    seed: int = 0,
) -> Any:
    """A trained Faiss index of all vectors, or None for `flat`, which the stored vectors themselves are.

    progress: called with the share that is done.  Raises ConfigurationError: too few vectors for it.
    """
    if chosen.factory == "Flat":
        return None
    import faiss

    index = faiss.index_factory(vectors.dim, chosen.factory, metric_of(similarity))
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = CONSTRUCTION
    try:
        if not index.is_trained:
            train(index, vectors, seed)
        done = 0
        # HNSW takes long for a block: small ones keep the bar moving.
        step = BLOCK // 8
        for _, block in vectors.blocks():
            for start in range(0, len(block), step):
                part = np.ascontiguousarray(block[start : start + step])
                index.add(part)
                done += len(part)
                progress(done / len(vectors))
    except RuntimeError as error:
        what = f"Faiss cannot build it from {len(vectors):,} vectors: {reason(error)}\n"
        what += "Take fewer lists or index=flat."
        raise ConfigurationError([Problem(f"index={chosen.factory}", what)]) from error
    set_parameters(index, chosen.parameters)
    return index


def set_parameters(index: Any, parameters: str) -> None:
    """Set what a search takes its time for, such as nprobe=16.  Raises RuntimeError: unknown ones."""
    import faiss

    faiss.ParameterSpace().set_index_parameters(index, parameters)


def train(index: Any, vectors: Vectors, seed: int) -> None:
    """Train on as many vectors as lists and codes need, drawn by `seed`."""
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    wanted = PQ_CODES * PQ_CODES
    if ivf is not None:
        wanted = max(wanted, TRAIN_PER_LIST * ivf.nlist)
        ivf.cp.max_points_per_centroid = TRAIN_PER_LIST
    rows = np.arange(len(vectors))
    if len(rows) > wanted:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), wanted, replace=False))
    index.train(np.ascontiguousarray(vectors.take(rows)))


def add(index: Any, vectors: np.ndarray) -> None:
    """Add rows at the end."""
    for start in range(0, len(vectors), BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))


def write(index: Any, directory: Path, facts: dict[str, Any]) -> str | None:
    """Write a Faiss index aside, then rename it; returns its name.  Raises OSError."""
    if index is None:
        return None
    import faiss

    name = files.fresh("faiss-", ".index")
    with files.new_file(directory, name, facts) as file:
        faiss.write_index(index, callback(file.write))
    return name


def read(path: Path, parameters: str) -> Any:
    """A Faiss index.  Raises RunError: not one, or one that this Faiss does not read."""
    import faiss

    try:
        index = faiss.read_index(str(path))
        set_parameters(index, parameters)
    except RuntimeError as error:
        raise RunError(f"Faiss cannot read {path}: {reason(error)}") from error
    return index


def size_of(index: Any) -> int:
    """Bytes of an index as Faiss writes it, which is what it takes in memory but for small change."""
    import faiss

    count = 0

    def measure(data: bytes) -> int:
        nonlocal count
        count += len(data)
        return len(data)

    faiss.write_index(index, callback(measure))
    return count


def callback(write: Callable[[Any], int]) -> Any:
    """What Faiss calls with each piece that it writes; an error raised there passes through."""
    import faiss

    return faiss.PyCallbackIOWriter(write)  # pyright: ignore[reportAttributeAccessIssue]
