"""Config in, objects out: the only place that calls hydra.utils.instantiate.

Nothing heavy is imported here; instantiate imports what a `_target_` names.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dml.config import losses as loss_schemas
from dml.data.index import ImageIndex, ImageSet
from dml.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from dml.averaging import Share
    from dml.data.augment import Augmentation
    from dml.encoder import Encoder

# Options of a group that are read by others than the thing it builds.
DATA_ONLY = ("num_train_classes", "recall_k", "on_bad_image", "small_classes", "cache", "cache_dir")
LOSS_ONLY = ("lr_scale", "weight_decay")
OPTIMIZER_ONLY = ("head_lr", "layer_decay", "sam_rho")


def build(node: DictConfig, *leave_out: str, **more: Any) -> Any:
    """Call what a node's `_target_` names with the node's options and some arguments more.

    leave_out: options that are read by others.  Raises what the target raises.
    """
    return constructor(node, *leave_out)(**more)


def constructor(node: DictConfig, *leave_out: str) -> Callable[..., Any]:
    """The node's target with the node's options filled in, yet to be called.

    Objects that are no configuration are given in that call: instantiate itself would turn a
    dataclass into a dictionary, and wrap the errors of the target in its own.
    """
    options = OmegaConf.to_container(node, resolve=True)
    assert isinstance(options, dict)
    kept = {str(key): value for key, value in options.items() if key not in leave_out}
    # Not recursive: only a group's own target is called, none within its options.
    try:
        return instantiate(kept, _partial_=True, _recursive_=False, _convert_="all")
    except InstantiationException as error:  # one's own, misspelt or not importable
        reason = " ".join(str(error).split())[:300]
        what = f"cannot be had: {reason}\nIs it spelt right, and its package on PYTHONPATH?"
        raise ConfigurationError([Problem(f"_target_={kept.get('_target_')}", what)]) from error


def index(config: DictConfig) -> ImageIndex:
    """The data set's files, labels and splits."""
    return build(config.data, *DATA_ONLY)


def sampler(config: DictConfig, images: ImageSet) -> Any:
    """Batches over training images."""
    more = {}
    if schema_of(config, "sampler").takes_superclasses:
        more["superclasses"] = images.superclasses
    return build(config.sampler, labels=images.labels, seed=config.seed, **more)


def geometry(config: DictConfig) -> str:
    """How the chosen loss compares embeddings, hence how they are evaluated: cosine, dot or euclidean."""
    return next(iter(loss_parts(config).values())).geometry


def schema_of(config: Any, key: str | None = None) -> Any:
    """The schema class of a node; its class variables say what the node's choice demands."""
    return OmegaConf.get_type(config, key)


def loss_parts(config: DictConfig) -> dict[str, type[loss_schemas.LossSchema]]:
    """Where each loss stands in the configuration -> its schema class, which says what it demands.

    {"loss": Circle}, or {"loss.first": Triplet, "loss.second": ArcFace} for a sum.
    """
    schema = schema_of(config, "loss")
    if not issubclass(schema, loss_schemas.Sum):
        return {"loss": schema}
    parts = [part for part in schema.parts if config.loss[part] is not None]
    return {f"loss.{part}": schema_of(config.loss, part) for part in parts}


def encoder(config: DictConfig, normalize: bool | None = None) -> "Encoder":
    """Trunk, head, and L2 normalisation; `normalize` None: as the loss demands."""
    from dml.encoder import Encoder, pooled_features

    trunk = build(config.backbone)
    head = build(config.head, in_features=pooled_features(trunk, config.head.pooling))
    if normalize is None:
        schemas = loss_parts(config).values()
        normalize = all(s.geometry == "cosine" and not s.keeps_length for s in schemas)
    return Encoder(trunk, head, normalize)


def loss(config: DictConfig) -> "nn.Module":
    """The loss module."""
    parts = loss_parts(config)
    if "loss" in parts:
        return one_loss(config.loss)
    kind = schema_of(config, "miner").kind
    return build(
        config.loss,
        *loss_schemas.Sum.parts,
        losses=[one_loss(OmegaConf.select(config, key)) for key in parts],
        takes_miner=[kind in schema.miners for schema in parts.values()],
        takes_reference=[schema.takes_reference for schema in parts.values()],
    )


def one_loss(node: DictConfig) -> "nn.Module":
    """One loss, and within it the classification loss whose logits it weighs (focal)."""
    if "classifier" not in node:
        return build(node, *LOSS_ONLY)
    return build(node, "classifier", *LOSS_ONLY, classifier=build(node.classifier))


def miner(config: DictConfig) -> Any:
    """The miner, or None; a regulariser may switch its triplets."""
    chosen = build(config.miner)
    if schema_of(config, "regularizer").switches_triplets:
        return build(config.regularizer, miner=chosen)
    return chosen


def memory(config: DictConfig) -> Any:
    """The cross-batch memory, or None."""
    return None if config.memory._target_ is None else build(config.memory)


def regularizer(config: DictConfig) -> "nn.Module | None":
    """The term that is added to the loss, or None."""
    schema = schema_of(config, "regularizer")
    if config.regularizer._target_ is None or schema.switches_triplets:
        return None
    return build(config.regularizer, *LOSS_ONLY)


def gathers(config: DictConfig) -> bool:
    """Whether several processes must each compare the whole batch, and not its own part alone.

    Not for a loss that is a mean of one value per image. A regulariser, and a callback that looks at the
    loss, see the whole batch.
    """
    means = all(schema.mean_over_images for schema in loss_parts(config).values())
    extras = (config.memory, config.regularizer, config.callbacks)
    return not means or any(extra._target_ is not None for extra in extras)


def callbacks(config: DictConfig) -> list[Any]:
    """Those of the configuration that look on at training."""
    if config.callbacks._target_ is None:
        return []
    parts = loss_parts(config)
    schema = parts.get("loss")
    pairs = schema is not None and "pairs" in schema.miners and schema.takes_reference
    return [build(config.callbacks, pairs=pairs)]


def train_transform(config: DictConfig, encoder: "Encoder") -> "Augmentation":
    """Augmentation that ends in the encoder's own normalisation."""
    return build(config.augment, preprocess=encoder.preprocess)


def optimizer(
    config: DictConfig,
    encoder: "Encoder",
    loss: "nn.Module",
    regularizer: "nn.Module | None" = None,
) -> "Optimizer":
    """The optimizer over trunk, head and the parameters of loss and regulariser."""
    from dml.optim import Learner, parameter_groups

    more, parts = [], loss_parts(config)
    if "loss" not in parts:
        for key, part in zip(parts, loss.losses, strict=True):  # type: ignore[arg-type]
            node = OmegaConf.select(config, key)
            rates = node.get("lr_scale", 1.0), node.get("weight_decay", 0.0)
            more.append(Learner(key, part, *rates))
    if regularizer is not None:
        more.append(
            Learner("regularizer", regularizer, config.regularizer.get("lr_scale", 1.0), 0.0)
        )
    groups = parameter_groups(
        encoder,
        loss,
        lr=config.optimizer.lr,
        head_lr=config.optimizer.head_lr,
        weight_decay=config.optimizer.weight_decay,
        loss_lr_scale=config.loss.get("lr_scale", 1.0),
        loss_weight_decay=config.loss.get("weight_decay", 0.0),
        more=more,
        layer_decay=config.optimizer.layer_decay,
    )
    return constructor(config.optimizer, *OPTIMIZER_ONLY)(groups)


def schedule(config: DictConfig, total_steps: int) -> Callable[[int], float]:
    """Factor on the learning rates by optimizer step."""
    return constructor(config.schedule)(total_steps)


def averaging(config: DictConfig) -> "Share | None":
    """How the weights are averaged along training, or None."""
    return None if config.averaging._target_ is None else constructor(config.averaging)


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries, interpolations resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
