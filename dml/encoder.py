"""The encoder: a timm trunk, pooling, a linear head, L2 normalisation. Images in, embeddings out."""

import contextlib
import difflib
import math
import os
import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants, try_to_load_from_cache
from jaxtyping import Float, Shaped
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dml.data.index import shortened
from dml.data.preprocess import Preprocess
from dml.errors import ConfigurationError, Problem
from dml.types import Embeddings

# Arguments of timm.create_model by which it reads weights from elsewhere, some timms by unpickling them.
FILES_OF_TIMM = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


class Trunk(nn.Module):
    """A timm model without its classifier, and the preprocessing that its weights expect.

    name: any timm model.  pretrained: timm's weights for it.  weights: a local file instead.
    kwargs: further arguments of timm.create_model.  image_size, resize, mean, std, interpolation: null
    keeps what timm records for the weights; resize null is image_size / crop_pct.
    freeze_bn: BatchNorm layers of every kind stay in evaluation mode, through any `train()`; their scale
    and shift go on learning, as in Revisiting-DML.  freeze_epochs: for how many epochs the head learns
    alone; `frozen` is switched by the training module.  channels_last: memory layout of images and
    convolutions; faster for most networks, equal up to rounding.

    Raises ConfigurationError: unknown name, illegal kwargs, weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        kwargs: dict[str, Any] | None = None,
        image_size: int | None = None,
        resize: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: str | None = None,
        freeze_bn: bool = False,
        freeze_epochs: int = 0,
        channels_last: bool = True,
    ):
        super().__init__()
        self.name, self.freeze_bn, self.freeze_epochs, self.frozen = (
            name,
            freeze_bn,
            freeze_epochs,
            False,
        )
        kwargs = dict(kwargs or {})
        if image_size and "img_size" not in kwargs and takes_image_size(name):
            kwargs["img_size"] = image_size
        self.kwargs = kwargs
        self.model = create_timm_model(name, pretrained, kwargs)
        if weights:
            load_weights(self.model, Path(weights).expanduser())
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        recorded = resolve_model_data_config(self.model)
        size = image_size or recorded["input_size"][-1]
        self.preprocess = Preprocess(
            image_size=size,
            resize=resize or math.floor(size / recorded["crop_pct"]),
            interpolation=interpolation or recorded["interpolation"],
            mean=three(mean or recorded["mean"]),
            std=three(std or recorded["std"]),
        )

    def train(self, mode: bool = True) -> "Trunk":
        """Training mode, but for what is frozen."""
        super().train(mode and not self.frozen)
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(
                    module, _BatchNorm
                ):  # timm's BatchNormAct2d and SyncBatchNorm included
                    module.eval()
        return self

    def forward(self, images: Shaped[Tensor, "n 3 h w"]) -> Tensor:
        """Features before pooling: [n, c, h, w], or tokens [n, t, c].

        images: uint8 pixels, which are normalised here (a loader sends a quarter of the bytes), or
        float ones that are normalised already.
        """
        if images.dtype == torch.uint8:
            images = self.preprocess.normalize(images).to(next(self.parameters()).dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.model.forward_features(images.contiguous(memory_format=self.memory_format))

    def feature_map(self, features: Tensor) -> Float[Tensor, "n c p"]:
        """Features as [n, channels, places], prefix tokens (class, registers) left out."""
        if features.ndim == 3:
            return features[:, getattr(self.model, "num_prefix_tokens", 0) :].transpose(1, 2)
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        return features.flatten(2)


class Head(nn.Module):
    """Pooling, optional LayerNorm, a linear layer to `dim`; dim None: none, the pooled features as they are.

    pooling: avg | max | avg_max (their sum, Proxy-Anchor) | gem (generalised mean with a learned power,
    Radenović et al., arXiv:1711.02512, eq. 3) | native (timm's own, such as the class token of a ViT).
    layer_norm: over the pooled features, without scale and shift, as in ProxyNCA++ and ROADMAP.
    """

    def __init__(
        self,
        in_features: int,
        dim: int | None = None,
        pooling: str = "avg",
        layer_norm: bool = False,
    ):
        super().__init__()
        self.dim, self.pooling = dim or in_features, pooling
        self.norm = (
            nn.LayerNorm(in_features, elementwise_affine=False) if layer_norm else nn.Identity()
        )
        self.linear = nn.Linear(in_features, dim) if dim else nn.Identity()
        if pooling == "gem":
            self.power = nn.Parameter(torch.tensor(3.0))

    def pool(self, features: Float[Tensor, "n c p"]) -> Float[Tensor, "n c"]:
        """One vector per image."""
        if self.pooling == "avg":
            return features.mean(-1)
        if self.pooling == "max":
            return features.amax(-1)
        if self.pooling == "avg_max":
            return features.mean(-1) + features.amax(-1)
        if self.pooling == "gem":
            power = self.power.clamp(min=1e-2)
            return features.float().clamp(min=1e-6).pow(power).mean(-1).pow(1 / power)
        raise ValueError(f"pooling {self.pooling!r} is none of avg, max, avg_max, gem, native")

    def forward(self, pooled: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """Pooled features to embeddings, not normalised."""
        return self.linear(self.norm(pooled))


class Encoder(nn.Module):
    """Trunk, head, and L2 normalisation unless the loss compares un-normalised embeddings.

    `preprocess` turns a PIL image into the trunk's input; `dim` is the length of an embedding.
    """

    def __init__(self, trunk: Trunk, head: Head, normalize: bool = True):
        super().__init__()
        self.trunk, self.head, self.normalize = trunk, head, normalize

    @property
    def preprocess(self) -> Preprocess:
        """The evaluation's preprocessing, the trunk's own."""
        return self.trunk.preprocess

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.head.dim

    def pooled(self, images: Shaped[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
        """The trunk's pooled features, before the embedding layer."""
        features = self.trunk(images)
        if self.head.pooling == "native":
            return self.trunk.model.forward_head(features, pre_logits=True)
        return self.head.pool(self.trunk.feature_map(features))

    def project(self, pooled: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """Pooled features to float32 vectors before normalisation, whatever the trunk's precision."""
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled.to(next(self.parameters()).dtype))

    def vectors(self, images: Shaped[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Images to float32 vectors before normalisation."""
        return self.project(self.pooled(images))

    def scale(self, vectors: Float[Tensor, "n d"]) -> Embeddings:
        """Vectors to embeddings: of length 1, unless the loss needs their own."""
        if not self.normalize:
            return vectors
        with torch.autocast(vectors.device.type, enabled=False):
            return F.normalize(vectors, dim=-1)

    def embed(self, pooled: Float[Tensor, "n c"]) -> Embeddings:
        """Pooled features to float32 embeddings."""
        return self.scale(self.project(pooled))

    def forward(self, images: Shaped[Tensor, "n 3 h w"]) -> Embeddings:
        """Cropped images, uint8 or normalised, to embeddings [n, dim]."""
        return self.embed(self.pooled(images))


def pooled_features(trunk: Trunk, pooling: str) -> int:
    """Length of the trunk's pooled features."""
    return trunk.model.head_hidden_size if pooling == "native" else trunk.model.num_features


def three(values: Any) -> tuple[float, float, float]:
    """One number a channel."""
    values = [float(value) for value in values]
    red, green, blue = values * 3 if len(values) == 1 else values
    return red, green, blue


def takes_image_size(name: str) -> bool:
    """Whether a timm model must be told its input size (vision transformers with fixed positions)."""
    architecture = name.split(".")[0]
    return timm.is_model(architecture) and architecture.startswith(
        ("vit_", "deit", "swin", "eva", "beit", "cait", "xcit", "test_vit")
    )


def create_timm_model(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """timm.create_model without a classifier, every failure a ConfigurationError with the mend."""
    if not timm.is_model(name.split(".")[0].removeprefix("hf-hub:")) and ":" not in name:
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ConfigurationError(
            [
                Problem(
                    f"backbone.name={name}",
                    "is no timm model."
                    + (f" Did you mean {', '.join(close)}?" if close else "")
                    + "\ntimm.list_models('*resnet*') lists them.",
                )
            ]
        )
    if files := [key for key in FILES_OF_TIMM if key in kwargs]:
        what = (
            "timm would load files of any kind by it. Give weights by backbone.weights=FILE alone."
        )
        raise ConfigurationError([Problem(f"backbone.kwargs.{files[0]}={kwargs[files[0]]}", what)])
    try:
        if pretrained:
            check_reachable(name)
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except TypeError as error:
        raise ConfigurationError(
            [Problem(f"backbone.kwargs={kwargs}", f"timm's {name} does not take these: {error}.")]
        ) from error
    except Exception as error:  # the hub's client raises many kinds; all of them mean: no weights
        if not pretrained:
            what = f"timm cannot build {name} with these: {first_line(error)}."
            raise ConfigurationError([Problem(f"backbone.kwargs={kwargs}", what)]) from error
        raise ConfigurationError([unreachable_weights(name, error)]) from error


def check_reachable(name: str) -> None:
    """Raise OSError within seconds when weights must come from a hub that does not answer.

    The hub's own client tries again for most of a minute before it says so.
    """
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None or not configuration.hf_hub_id or os.environ.get("HF_HUB_OFFLINE"):
        return
    for filename in (constants.SAFETENSORS_SINGLE_FILE, constants.PYTORCH_WEIGHTS_NAME):
        if try_to_load_from_cache(configuration.hf_hub_id, filename) is not None:
            return
    with contextlib.suppress(urllib.error.HTTPError):  # an answer, whatever it says
        urllib.request.urlopen(constants.ENDPOINT, timeout=5)


def unreachable_weights(name: str, error: Exception) -> Problem:
    """What to fetch by hand when the weights of a model cannot be had."""
    configuration = timm.get_pretrained_cfg(name)
    source = None
    if configuration is not None:
        source = configuration.hf_hub_id or configuration.url
        if configuration.hf_hub_id and configuration.hf_hub_id.startswith("timm/"):
            source = (
                f"https://huggingface.co/{configuration.hf_hub_id}/resolve/main/model.safetensors"
            )
    what = (
        f"download {source}\nelsewhere"
        if source
        else "timm records no weights of this name; find some"
    )
    return Problem(
        f"backbone.name={name}",
        f"its pretrained weights cannot be had ({type(error).__name__}"
        f": {first_line(error)}).\n"
        f"Either {what} and give the file: backbone.weights=FILE backbone.pretrained=false,\n"
        "or train from random weights: backbone.pretrained=false.",
    )


def first_line(error: Exception) -> str:
    """What an exception says, cut to a line."""
    return next(iter(str(error).strip().splitlines()), "no reason given")[:160]


def why_not(error: Exception) -> str:
    """Why a file of weights cannot be read; torch would advise to trust it."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors or is damaged, and nothing that could run code is loaded"
    return f"{type(error).__name__}: {first_line(error)}"


def load_weights(model: Any, path: Path) -> None:
    """Load a state dict from a safetensors file or a plain torch file, strictly.

    Classifier weights, which the trunk does not have, are the only ones left out.
    """
    where = f"backbone.weights={path}"
    if not path.is_file():
        raise ConfigurationError([Problem(where, "is no file.")])
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can fail in any way; every one means the same
        raise ConfigurationError(
            [
                Problem(
                    where,
                    f"cannot be read ({why_not(error)}).\n"
                    "Give a .safetensors file or a plain state dict saved by torch.save.",
                )
            ]
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ConfigurationError([Problem(where, "holds no state dict (names and tensors).")])
    classifiers = model.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    state = {
        k: v for k, v in state.items() if not k.startswith(tuple(f"{c}." for c in classifiers))
    }
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    foreign = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    if missing or foreign or shapes:
        parts = [
            f"{len(keys)} {what}: {shortened(keys)}"
            for what, keys in (
                ("missing in the file", missing),
                ("unknown to the model", foreign),
                ("of another shape", shapes),
            )
            if keys
        ]
        raise ConfigurationError(
            [
                Problem(
                    where, "does not fit the model.\n" + "\n".join(parts) + "\nCheck backbone.name."
                )
            ]
        )
    model.load_state_dict(state, strict=True)
