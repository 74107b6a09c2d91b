"""Cross-batch memory (XBM): Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020,
arXiv:1912.06798.
"""

import torch
from torch import Tensor, nn

from dml.types import Embeddings, Labels


class CrossBatchMemory(nn.Module):
    r"""The last `size` embeddings of training and their labels, as more columns for a pair loss.

        L = loss(batch, batch) + w loss(batch, memory)

    as in the authors' code. Embeddings drift slowly once training has settled, so old ones still
    say where an image lies. In every step from `start_step` on, the batch enters the queue, without
    gradient and in the place of the oldest, and is then compared with all of it. Before that step
    the loss is the batch's own, and nothing is queued. An anchor's own copy is left out by its slot,
    never by its similarity; older copies of the same image are positives like any other. How far
    the queue is filled is counted, and not read off its contents.

    Args:
        size: slots, at least one batch.
        dim: length of an embedding.
        start_step: optimizer steps before the memory is used.
        weight: w, above 0.

    Buffers: embeddings [size, dim], labels [size], the next slot and the number of slots in use. They
    are in the checkpoint, so a resumed run goes on with the same memory.
    """

    embeddings: Tensor
    labels: Tensor
    next_slot: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, start_step: int = 0, weight: float = 1.0):
        super().__init__()
        self.size, self.start_step, self.weight = size, start_step, weight
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("next_slot", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, embeddings: Embeddings, labels: Labels) -> dict[str, Tensor]:
        """Put a batch into the queue; returns what a loss is to compare it with.

        `reference` [m, dim] and `reference_labels` [m] are the slots in use, `self_slots` [n] the
        column of each row of the batch. They are views of the queue: run the backward pass before
        the next call. ValueError for more rows than slots.
        """
        n = len(labels)
        if n > self.size:
            raise ValueError(f"a batch of {n} does not fit a memory of {self.size} slots")
        slots = (self.next_slot + torch.arange(n, device=self.labels.device)) % self.size
        self.embeddings[slots] = embeddings.detach().to(self.embeddings)
        self.labels[slots] = labels.to(self.labels)
        self.next_slot.copy_((self.next_slot + n) % self.size)
        self.filled.copy_((self.filled + n).clamp(max=self.size))
        used = int(self.filled)
        return {
            "reference": self.embeddings[:used],
            "reference_labels": self.labels[:used],
            "self_slots": slots,
        }

    def extra_repr(self) -> str:
        """Hyperparameters for `print`."""
        return f"size={self.size}, start_step={self.start_step}, weight={self.weight}"
