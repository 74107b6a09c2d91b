"""Exported encoders at run time: images in, embeddings out, checked to be the encoder that was measured.

Needs torch, timm, safetensors and Pillow alone: no Lightning, Hydra or Faiss.  Nothing is unpickled and
no code of the bundle runs: a timm model is rebuilt from JSON and its weights come from safetensors.
"""

import math
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from jaxtyping import UInt8
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from tqdm import tqdm

from dml import bundle_format
from dml.bundle_format import CARD, DESCRIPTION, HUB, PROBE, WEIGHTS, BundleError, Description
from dml.data.decode import ImageFile, UnreadableImage, to_rgb
from dml.data.preprocess import Preprocess
from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.errors import ConfigurationError
from dml.types import Embeddings

LEAST_COSINE = 0.999  # of the probe's embedding to the one in the bundle
LENGTHS = 0.01  # by which the two may differ in length, as a share; matters where it is not 1
SPARE = 2  # times the size of its weights file that a network may come to while it is built
LARGEST_PROBE = 1 << 24  # bytes, of each array
MAX_PIXELS = 89_478_485  # of an image; the size above which Pillow warns of decompression bombs

AnyImage: TypeAlias = Image.Image | np.ndarray | Tensor | str | Path


class ImageEncoder:
    """An exported encoder; made by `load_encoder`.

    dim: length of an embedding.  normalized: whether embeddings have length 1.  geometry: how they are
    compared: cosine, dot or euclidean.  fingerprint: SHA-256 over weights and preprocessing; embeddings of
    two encoders compare only if it is the same.  preprocess: the evaluation's own `Preprocess`.
    description: all of encoder.json.  max_pixels: larger images are refused, as they may be made to
    exhaust memory; may be set.

    One object may be called from several threads.
    """

    def __init__(self, encoder: Encoder, description: Description):
        self.model = encoder.eval().requires_grad_(False)
        self.description = description
        self.max_pixels = MAX_PIXELS

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.description.dim

    @property
    def normalized(self) -> bool:
        """Whether embeddings have length 1."""
        return self.description.normalized

    @property
    def geometry(self) -> str:
        """How embeddings are compared: cosine, dot or euclidean."""
        return self.description.geometry

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that stand for the weights and the preprocessing."""
        return self.description.fingerprint

    @property
    def preprocess(self) -> Preprocess:
        """What happens to an image before the network."""
        return self.model.preprocess

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "ImageEncoder":
        """Compute on another device; returns itself."""
        self.model.to(device)
        return self

    def __repr__(self) -> str:
        name, size = self.description.backbone.name, self.preprocess.image_size
        return (
            f"ImageEncoder({name}, {size} x {size} pixels -> {self.dim} numbers, {self.geometry}, "
            f"on {self.device}, {self.fingerprint[:12]})"
        )

    def __call__(self, images: Sequence[AnyImage]) -> Embeddings:
        """`embed` with its defaults: images -> float32 [n, dim], on the CPU."""
        return self.embed(images)

    def embed(
        self, images: Sequence[AnyImage], batch_size: int = 64, progress: bool = False
    ) -> Embeddings:
        """Images to embeddings, float32 [n, dim] on the CPU, in the order of the images.

        images: a list, in which each may be
        - a PIL image of any mode (converted to RGB as the evaluation does: grey-scale, palette and CMYK are
          converted, 16 bits become 8, transparency and EXIF rotation are ignored),
        - a path of an image file,
        - an array uint8 [h, w, 3], [h, w, 4] or [h, w], or uint16 [h, w],
        - a tensor uint8 [3, h, w] or [1, h, w],
        - a tensor float [3, image_size, image_size]: the output of `preprocess`, not touched further,
        or one array [n, h, w, 3] or tensor [n, 3, h, w] of these.
        batch_size: how many are in memory at a time.  progress: a bar on stderr, on a terminal.

        Raises UnreadableImage naming the image that cannot be decoded or is too large, TypeError or
        ValueError for what is no image.
        """
        check_several(images)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        parts = []
        with tqdm(total=len(images), unit="image", disable=None if progress else True) as bar:
            for start in range(0, len(images), batch_size):
                batch = [
                    self._input(images[position], position)
                    for position in range(start, min(start + batch_size, len(images)))
                ]
                parts += self._embed_mixed(batch)
                bar.update(len(batch))
        return torch.stack(parts) if parts else torch.empty(0, self.dim)

    def pixels(self, image: AnyImage) -> UInt8[Tensor, "3 s s"]:
        """One image, not a float tensor, resized and cropped for `embed_pixels`.

        For those who decode in processes of their own.  Raises as `embed`.
        """
        return self.preprocess.crop(self._rgb(image))

    @torch.inference_mode()
    def embed_pixels(self, pixels: UInt8[Tensor, "n 3 s s"]) -> Embeddings:
        """Cropped images, uint8 (or float and normalised), in one batch -> float32 [n, dim] on the CPU."""
        return self.model(pixels.to(self.device)).float().cpu()

    def _embed_mixed(self, batch: list[Tensor]) -> list[Tensor]:
        """uint8 and normalised float images alike, each kind in one batch."""
        found: dict[int, Tensor] = {}
        for kind in {image.dtype for image in batch}:
            places = [place for place, image in enumerate(batch) if image.dtype == kind]
            rows = self.embed_pixels(torch.stack([batch[place] for place in places]))
            found.update(zip(places, rows, strict=True))
        return [found[place] for place in range(len(batch))]

    def _input(self, image: AnyImage, position: int) -> Tensor:
        """One image as the network takes it; errors name it."""
        name = str(image) if isinstance(image, str | Path) else f"image {position}"
        try:
            if isinstance(image, Tensor) and image.is_floating_point():
                return self._normalised(image)
            return self.pixels(image)
        except UnreadableImage as error:
            raise UnreadableImage(f"{name}: {error}") from error
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error

    def _normalised(self, image: Tensor) -> Tensor:
        size = self.preprocess.image_size
        if image.shape != (3, size, size):
            raise ValueError(
                f"a float tensor must be [3, {size}, {size}], the output of encoder.preprocess, and not "
                f"{list(image.shape)}. Give uint8 pixels for any other size"
            )
        return image.float()

    def _rgb(self, image: AnyImage) -> Image.Image:
        """Any image but a float tensor as RGB, decoded as the evaluation decodes files."""
        if isinstance(image, str | Path):
            file = ImageFile(Path(image))
            self._check_size(file.width, file.height)
            return file.image()
        if isinstance(image, Tensor):
            image = array_of(image)
        if isinstance(image, np.ndarray):
            image = picture_of(image)
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"is {type(image).__name__}, no PIL image, path, array or tensor of an image"
            )
        self._check_size(*image.size)
        try:
            return to_rgb(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise UnreadableImage(
                f"{width} x {height} pixels are more than {self.max_pixels}. Shrink the image, or set "
                "encoder.max_pixels"
            )
        if width == 0 or height == 0:
            raise UnreadableImage(f"{width} x {height} pixels are no image")


def check_several(images: Any) -> None:
    """Raise TypeError or ValueError for one image where several are expected."""
    if isinstance(images, str | Path | Image.Image):
        raise TypeError("embed takes a list of images; for one image write encoder([image])")
    if isinstance(images, np.ndarray | Tensor) and images.ndim != 4:
        raise ValueError(
            f"one {type(images).__name__} of several images has 4 dimensions, not {images.ndim}; for "
            "one image write encoder([image])"
        )
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise TypeError(f"embed takes a list of images, not {type(images).__name__}")


def array_of(image: Tensor) -> np.ndarray:
    """A uint8 tensor [3 or 1, h, w] as an array [h, w, 3] or [h, w]."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"a tensor of pixels must be uint8 [3, h, w] or [1, h, w], not "
            f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
        )
    array = image.cpu().permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


def picture_of(array: np.ndarray) -> Image.Image:
    """An array of pixels as a PIL image."""
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        return Image.fromarray(array)
    if array.ndim == 2 and array.dtype in (np.uint8, np.uint16):
        return Image.fromarray(array)
    raise ValueError(
        "an array of pixels must be uint8 [h, w, 3], [h, w, 4] or [h, w], or uint16 [h, w], not "
        f"{array.dtype} {list(array.shape)}. Float pixels have no one scale: convert them"
    )


def load_encoder(
    bundle: str | Path, device: torch.device | str = "cpu", *, token: str | None = None
) -> ImageEncoder:
    """The encoder of a bundle, checked to compute what it did when it was exported.

    bundle: a directory, or ``hf://owner/name`` or ``hf://owner/name@revision`` on the Hugging Face Hub.
    device: where it computes, such as "cuda".  token: for a private repository; None: the one that
    `hf auth login` keeps.

    Raises BundleError: no bundle, another format version, missing, damaged or foreign files, or an
    embedding of the probe image that is not the recorded one.
    """
    name = str(bundle)
    directory = downloaded(name, token) if name.startswith(HUB) else Path(name).expanduser()
    description = bundle_format.read(directory)
    bundle_format.check_files(directory, description, (WEIGHTS, PROBE))
    image, expected = read_probe(directory / PROBE, description.dim)
    model = rebuilt(description, directory)
    load_weights(model, directory / WEIGHTS)
    encoder = ImageEncoder(model.to(device), description)
    check_probe(encoder, image, expected)
    return encoder


def downloaded(address: str, token: str | None) -> Path:
    """The files that an encoder needs, from the hub or its cache on this machine."""
    name, _, revision = address.removeprefix(HUB).partition("@")
    if name.count("/") != 1:
        raise BundleError(f"{address} must be {HUB}owner/name or {HUB}owner/name@revision.")
    try:
        found = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=[DESCRIPTION, WEIGHTS, PROBE],
            token=token,
        )
    except Exception as error:  # the hub's client raises many kinds; all of them mean: no bundle
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise BundleError(
            f"{address} cannot be had ({type(error).__name__}: {reason}).\n"
            "Check the name, the network and, for a private repository, `hf auth login`."
        ) from error
    return Path(found)


def rebuilt(description: Description, directory: Path) -> Encoder:
    """The encoder that encoder.json describes, with random weights."""
    told, head = description.preprocess, description.head
    try:
        with no_larger_than(directory / WEIGHTS):
            trunk = Trunk(
                description.backbone.name,
                kwargs=description.backbone.kwargs,
                image_size=told.image_size,
                resize=told.resize,
                mean=told.mean,
                std=told.std,
                interpolation=told.interpolation,
            )
            width = pooled_features(trunk, head.pooling)
            encoder = Encoder(
                trunk, Head(width, head.dim, head.pooling, head.layer_norm), description.normalized
            )
    except ConfigurationError as error:
        what = "; ".join(problem.what.splitlines()[0] for problem in error.problems)
        raise BundleError(
            f"timm {version('timm')} cannot build the network of {directory} "
            f"({description.backbone.name}): it {what}\n"
            f"The bundle was written with timm {description.versions.get('timm', 'unknown')}."
        ) from error
    except Exception as error:  # what a network makes of its arguments can fail in any way
        raise BundleError(
            f"timm {version('timm')} cannot build the network of {directory} "
            f"({description.backbone.name}): {error}\n"
            f"The bundle was written with timm {description.versions.get('timm', 'unknown')}."
        ) from error
    if encoder.dim != description.dim:
        raise BundleError(
            f"{directory / DESCRIPTION} says dim {description.dim}, its network has {encoder.dim}."
        )
    return encoder


@contextmanager
def no_larger_than(weights: Path) -> Iterator[None]:
    """Within this block a network that outgrows its weights file is not built to its end.

    encoder.json may ask timm for a million layers, and building them would take all memory and time.
    Raises BundleError, naming both sizes; also for a file that is no safetensors.
    """
    try:
        with safe_open(weights, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except Exception as error:  # a damaged header fails in many ways
        raise BundleError(f"{weights} is no safetensors file: {error}") from error
    most_tensors = len(shapes)
    most_numbers = sum(math.prod(shape) for shape in shapes)
    thread, tensors, numbers = threading.get_ident(), 0, 0

    def count(_module: Any, _name: str, parameter: Any) -> None:
        nonlocal tensors, numbers
        if parameter is None or threading.get_ident() != thread:
            return
        tensors, numbers = tensors + 1, numbers + parameter.numel()
        # Some networks register a parameter, or a classifier that timm then removes, and replace it.
        if tensors > SPARE * most_tensors or numbers > SPARE * most_numbers:
            raise BundleError(
                f"its network is larger than {weights}, which has {most_numbers:,} numbers in "
                f"{most_tensors:,} tensors"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def load_weights(model: Encoder, path: Path) -> None:
    """Weights from safetensors, every one and no other.  Raises BundleError."""
    try:
        state = load_file(path)
    except Exception as error:  # not only SafetensorError: a type that torch does not know, say
        raise BundleError(f"{path} is no safetensors file: {error}") from error
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:  # names and shapes, one per line
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise BundleError(
            f"{path} does not fit the network of {DESCRIPTION}: {' '.join(lines)[:400]}"
        ) from error


def read_probe(path: Path, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The probe: an image uint8 [h, w, 3] and its embedding float32 [dim].  Raises BundleError."""
    names = {"image.npy", "embedding.npy"}
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {item.filename: item.file_size for item in archive.infolist()}
        if set(sizes) != names or max(sizes.values()) > LARGEST_PROBE:
            raise BundleError(f"{path} must hold an image and an embedding of at most 16 MiB each.")
        with np.load(path, allow_pickle=False) as arrays:
            image, embedding = arrays["image"], arrays["embedding"]
    except BundleError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise BundleError(f"{path} cannot be read: {error}") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise BundleError(f"{path}: the image is {image.dtype} {list(image.shape)}, not [h, w, 3].")
    if embedding.dtype != np.float32 or embedding.shape != (dim,):
        raise BundleError(
            f"{path}: the embedding is {embedding.dtype} {list(embedding.shape)}, not [{dim}]."
        )
    return image, embedding


def check_probe(encoder: ImageEncoder, image: np.ndarray, expected: np.ndarray) -> None:
    """Raise BundleError unless the encoder embeds the probe as it did when it was exported."""
    try:
        found = encoder([image])[0].double().numpy()
    except Exception as error:  # a network of other arguments may be built and not compute
        what = f"{type(error).__name__}: {error}"
        raise BundleError(f"its encoder cannot embed the probe ({what:.300}).") from error
    wanted = expected.astype(np.float64)
    lengths = np.linalg.norm(found), np.linalg.norm(wanted)
    cosine = float(found @ wanted / (lengths[0] * lengths[1])) if all(lengths) else float("nan")
    if cosine >= LEAST_COSINE and abs(lengths[0] / lengths[1] - 1) <= LENGTHS:
        return
    here = {name: version(name) for name in ("torch", "torchvision", "timm", "pillow")}
    then = encoder.description.versions
    changed = [
        f"{name} {then[name]} then, {now} now"
        for name, now in here.items()
        if name in then and then[name] != now
    ]
    raise BundleError(
        f"the encoder does not compute what it did when it was exported: cosine {cosine:.6f} between the "
        f"probe's embeddings (at least {LEAST_COSINE} is asked for), lengths {lengths[0]:.4f} now and "
        f"{lengths[1]:.4f} then.\n"
        + (f"Versions differ: {'; '.join(changed)}." if changed else "The versions are the same: ")
        + ("" if changed else "weights or description were changed. Export the run again.")
    )


def push_to_hub(
    bundle: str | Path, name: str, *, private: bool = True, token: str | None = None
) -> str:
    """Upload a bundle to the Hugging Face Hub; returns the address of the commit.

    name: owner/name; the repository is made where there is none.  private: of a new repository; nobody
    else sees it.  token: None takes the one that `hf auth login` keeps.  Every file is checked first, and
    only a bundle's own files are uploaded.

    Raises BundleError: a damaged bundle, or a hub that refuses.
    """
    directory = Path(bundle).expanduser()
    description = bundle_format.read(directory)
    bundle_format.check_files(directory, description, description.files)
    if name.count("/") != 1:
        raise BundleError(f"{name!r} must be owner/name.")
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=directory,
            allow_patterns=[DESCRIPTION, CARD, *description.files],
            commit_message=f"Encoder {description.fingerprint[:12]}",
        )
    except Exception as error:  # as in `downloaded`
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise BundleError(
            f"{directory} cannot be uploaded to {name} ({type(error).__name__}: {reason}).\n"
            "Check the name, the network and `hf auth login`."
        ) from error
    return str(commit.commit_url)
