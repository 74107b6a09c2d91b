"""The files of a bundle, and what `encoder.json` says: read strictly, checked before anything is built.

A bundle is a directory with encoder.json, weights.safetensors, probe.npz, a model card (README.md) and,
where asked for, the encoder as a graph for other run times.  Torch-free, so that a command that is given
a wrong bundle says so within a second.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dml.errors import RunError

FORMAT_VERSION = 1
HUB = "hf://"  # before owner/name of a bundle on the Hugging Face Hub
DESCRIPTION, WEIGHTS, PROBE, CARD = "encoder.json", "weights.safetensors", "probe.npz", "README.md"
LARGEST_DESCRIPTION = 1 << 20  # bytes

POOLINGS = ("avg", "max", "avg_max", "gem", "native")
GEOMETRIES = ("cosine", "dot", "euclidean")
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Arguments of timm.create_model that read files, ask a hub, or change what the other entries say.
NOT_FOR_BUNDLES = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("num_classes", "in_chans", "model_name", "scriptable", "exportable", "no_jit"),
)


class BundleError(RunError):
    """A bundle is none, is damaged, is of another version, or does not compute what it did."""


@dataclass(frozen=True)
class Backbone:
    """A timm model: its name and the further arguments of timm.create_model."""

    name: str
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class HeadOptions:
    """Arguments of `dml.encoder.Head`."""

    pooling: str
    dim: int | None
    layer_norm: bool


@dataclass(frozen=True)
class Preprocessing:
    """Fields of `dml.data.preprocess.Preprocess`: the whole way from a decoded image to the network."""

    image_size: int
    resize: int
    interpolation: str
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Training:
    """Where the encoder comes from, as its run's record tells.

    metrics: split -> metric -> value.  protocol: how they were measured.
    """

    command: str
    experiment: str | None
    loss: str
    data: str
    data_fingerprint: str
    commit: str | None
    dirty: bool | None
    started: str
    checkpoint: str
    protocol: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    versions: dict[str, str]


@dataclass(frozen=True)
class File:
    """Size and checksum of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Parity:
    """A graph beside the PyTorch encoder, on the same real images.

    largest_difference: of any number of an embedding.  smallest_cosine: of an image's two embeddings.
    recall_at_1: of the graph's embeddings, recall_at_1_torch: of the encoder's, on these images alone.
    """

    images: int
    largest_difference: float
    smallest_cosine: float
    recall_at_1: float
    recall_at_1_torch: float


@dataclass(frozen=True)
class Graph:
    """The encoder in the format of another run time.

    preprocess: `none` takes cropped images, `in_graph` resizes and crops as well.  weights: float32 | int8.
    input: name, element type and shape of the input, in words.
    """

    file: str
    format: str
    preprocess: str
    weights: str
    input: str
    parity: Parity


@dataclass(frozen=True)
class Description:
    """What encoder.json holds.

    dim: length of an embedding.  normalized: whether embeddings have length 1.  geometry: how they are
    compared (cosine | dot | euclidean).  files: name -> size and checksum, of every file but encoder.json
    itself and the model card, which people complete.  versions: of what wrote the bundle.
    """

    format_version: int
    backbone: Backbone
    head: HeadOptions
    dim: int
    normalized: bool
    geometry: str
    preprocess: Preprocessing
    training: Training | None
    versions: dict[str, str]
    files: dict[str, File]
    graphs: list[Graph] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights and all that turns them into a function of an image.

        Two bundles with one fingerprint embed alike; those of different ones do not compare.
        """
        function = {
            "backbone": asdict(self.backbone),
            "head": asdict(self.head),
            "normalized": self.normalized,
            "preprocess": asdict(self.preprocess),
            "weights": self.files[WEIGHTS].sha256,
        }
        return hashlib.sha256(json.dumps(function, sort_keys=True).encode()).hexdigest()


def read(directory: Path) -> Description:
    """encoder.json of a bundle, complete and within bounds.  Reads no other file.

    Raises BundleError with everything wrong with it.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        what = f"{directory} is no bundle of an encoder: it holds no {DESCRIPTION}."
        raise BundleError(what + "\nMake one of a finished run: dml-export run=DIR out=NAME.")
    if path.stat().st_size > LARGEST_DESCRIPTION:
        raise BundleError(
            f"{path} is larger than {LARGEST_DESCRIPTION} bytes: it is no description."
        )
    try:
        content = json.loads(
            path.read_bytes(), parse_constant=no_constant, object_pairs_hook=without_doubles
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is no JSON of ours: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{path} has format version {version!r}; this version of dml reads {FORMAT_VERSION}.\n"
            "Export the run again, or install the version of dml that wrote it."
        )
    problems: list[str] = []
    description = parsed(Description, content, "", problems)
    if not problems:
        problems = contradictions(description)
    if problems:
        raise BundleError("\n  ".join([f"{path} is not a description of an encoder:", *problems]))
    return description


def no_constant(name: str) -> float:
    """Refuse NaN and Infinity."""
    raise ValueError(f"{name} is no number")


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is given twice: readers would differ in which they take."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def parsed(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """A JSON value as the annotated type; what does not fit is added to `problems`.

    Every field of a dataclass must be there, and nothing else.
    """
    if is_dataclass(kind):
        return parsed_fields(kind, value, where, problems)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None:
            return None
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return parsed(kind, value, where, problems)
    if origin is list and isinstance(value, list):
        return [parsed(arguments[0], v, f"{where}[{i}]", problems) for i, v in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {k: parsed(arguments[1], v, f"{where}.{k}", problems) for k, v in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        problems.append(f"{where} is {type(value).__name__}, not {plain.__name__}")
    return value


def parsed_fields(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`parsed` for a dataclass."""
    prefix = f"{where}." if where else ""
    if not isinstance(value, dict):
        problems.append(f"{where} is {type(value).__name__}, not a dictionary")
        return None
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    problems += [f"{prefix}{name} is missing" for name in names if name not in value]
    problems += [f"{prefix}{name} is unknown" for name in value if name not in names]
    found = {
        name: parsed(hints[name], value[name], f"{prefix}{name}", problems)
        for name in names
        if name in value
    }
    return None if problems else kind(**found)


def contradictions(it: Description) -> list[str]:
    """Values out of bounds, and entries that do not go together."""
    found: list[str] = []

    def require(holds: bool, what: str) -> None:
        if not holds:
            found.append(what)

    name, preprocess = it.backbone.name, it.preprocess
    require(
        re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", name) is not None,
        f"backbone.name {name!r} is no name of a timm architecture",
    )
    for key in it.backbone.kwargs:
        require(key.isidentifier(), f"backbone.kwargs.{key} is no argument's name")
        require(key not in NOT_FOR_BUNDLES, f"backbone.kwargs.{key} is not for bundles")
    require(it.head.pooling in POOLINGS, f"head.pooling {it.head.pooling!r} is unknown")
    require(0 < it.dim <= 1 << 20, f"dim {it.dim} is out of bounds")
    require(it.head.dim in (None, it.dim), f"head.dim {it.head.dim} is not dim {it.dim}")
    require(it.geometry in GEOMETRIES, f"geometry {it.geometry!r} is unknown")
    for key in ("image_size", "resize"):
        size = getattr(preprocess, key)
        require(0 < size <= 1 << 13, f"preprocess.{key} {size} is out of bounds")
    require(
        preprocess.interpolation in INTERPOLATIONS,
        f"preprocess.interpolation {preprocess.interpolation!r} is unknown",
    )
    for key in ("mean", "std"):
        values = getattr(preprocess, key)
        require(len(values) == 3, f"preprocess.{key} has {len(values)} numbers, not 3")
        require(all(map(math.isfinite, values)), f"preprocess.{key} is not finite")
    require(all(value > 0 for value in preprocess.std), "preprocess.std is not positive")
    for file in (WEIGHTS, PROBE):
        require(file in it.files, f"files.{file} is missing")
    for file, told in it.files.items():
        require(is_plain_name(file), f"files: {file!r} is no plain file name")
        require(told.bytes >= 0, f"files.{file}.bytes {told.bytes} is negative")
        require(
            re.fullmatch(r"[0-9a-f]{64}", told.sha256) is not None,
            f"files.{file}.sha256 is no checksum",
        )
    for graph in it.graphs:
        require(graph.file in it.files, f"graphs: {graph.file!r} is not among files")
    return found


def is_plain_name(name: str) -> bool:
    """Whether a name stays within its directory, on every system."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", name) is not None


def file_of(path: Path) -> File:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path.stat().st_size, digest)


def check_files(directory: Path, description: Description, names: Iterable[str]) -> None:
    """Hold files against their size and checksum.  Raises BundleError naming the first that differs."""
    for name in names:
        path, told = directory / name, description.files[name]
        if not path.is_file():
            raise BundleError(f"{directory} lacks {name}: the bundle is not whole. Copy it again.")
        size = path.stat().st_size
        if size != told.bytes:
            raise BundleError(
                f"{path} has {size} bytes, not {told.bytes}: it is not the file that was exported."
            )
        if file_of(path) != told:
            raise BundleError(
                f"the checksum of {path} is not that in {DESCRIPTION}: it was changed or damaged. "
                "Copy the bundle again."
            )
