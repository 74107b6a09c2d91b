"""Batches larger than memory: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup", RepL4NLP 2021, arXiv:2101.06983.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dml.data.index import shortened
from dml.errors import ConfigurationError, Problem


def in_chunks(embed: Callable[[Tensor], Tensor], images: Tensor, chunks: int) -> Tensor:
    """`embed(images)`, with the activations of one chunk of the batch alive at a time.

    The paper's two passes. The first embeds chunk by chunk and keeps no activations; whatever is computed
    from all embeddings gives their gradients. The second, within the backward pass, embeds each chunk
    again, from the same random state and in the same precision, and carries its part of the gradient on
    to the parameters. The gradient is that of the whole batch as long as an image's embedding does not
    depend on the other images (`check_chunks`). Time: one more forward pass.

    embed: images [n, ...] -> [n, d].  chunks: at least 1, which is a plain call.  Returns [n, d].
    """
    if chunks == 1:
        return embed(images)
    parts = images.chunk(chunks)
    return torch.cat([checkpoint(embed, part, use_reentrant=False) for part in parts])


def check_chunks(encoder: nn.Module, chunks: int) -> None:
    """Raise ConfigurationError if an embedding depends on the batch it is computed in.

    BatchNorm with statistics of the batch would normalise each chunk by its own, and count it twice.
    """
    if chunks == 1:
        return
    encoder.train()  # what is frozen stays in evaluation mode
    found = [name for name, module in encoder.named_modules() if follows_the_batch(module)]
    if not found:
        return
    mend = "Add backbone.freeze_bn=true, choose"
    if getattr(encoder.get_submodule(found[0]), "running_mean", None) is None:
        mend = "Choose"
    raise ConfigurationError(
        [
            Problem(
                f"trainer.batch_chunks={chunks}",
                f"needs embeddings that do not depend on the batch, and {len(found)} layers normalise by "
                f"its statistics ({shortened(found)}).\n{mend} a backbone without such layers (a vision "
                "transformer), or drop trainer.batch_chunks.",
            )
        ]
    )


def follows_the_batch(module: nn.Module) -> bool:
    """Whether a layer, in the mode it is in, computes with the mean or variance of the batch.

    All kinds of BatchNorm, and any other layer that keeps a running variance (timm's EvoNorm-B).
    """
    keeps = getattr(module, "running_var", None) is not None
    if isinstance(module, _BatchNorm):
        return module.training or not keeps
    return module.training and keeps
