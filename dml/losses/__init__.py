"""Losses, one paper per file: `loss(embeddings, labels)` -> scalar.

Every loss takes `embeddings` [n, d] (any floating type; computed in float32 or better) and integer
`labels` [n]. Losses over pairs and triplets also take

- `indices_tuple`: a miner's choice, pairs (anchor, positive, anchor, negative) or triplets (anchor,
  positive, negative), as pytorch-metric-learning returns them; without it all pairs of the batch
  count;
- `reference` [m, d] with `reference_labels` [m]: what to compare with instead of the batch, such
  as a memory. Nothing is excluded then, unless `self_slots` [n] names the column that holds each
  anchor itself (-1: none does).
"""

from dml.losses.arcface import ArcFace
from dml.losses.circle import Circle
from dml.losses.contrastive import Contrastive
from dml.losses.lifted_structure import LiftedStructure
from dml.losses.multi_similarity import MultiSimilarity
from dml.losses.n_pair import NPair
from dml.losses.proxy_nca import ProxyNCA
from dml.losses.smooth_ap import SmoothAP
from dml.losses.triplet import Triplet

__all__ = [
    "ArcFace",
    "Circle",
    "Contrastive",
    "LiftedStructure",
    "MultiSimilarity",
    "NPair",
    "ProxyNCA",
    "SmoothAP",
    "Triplet",
]
