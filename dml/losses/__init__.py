"""Losses, one paper per file: `loss(embeddings, labels)` -> scalar.

Every loss takes `embeddings` [n, d] (any floating type; computed in float32 or better) and integer
`labels` [n], save `LogRatio`, which is about distances between continuous labels. Losses over pairs
and triplets also take

- `indices_tuple`: a miner's choice, pairs (anchor, positive, anchor, negative) or triplets (anchor,
  positive, negative), as pytorch-metric-learning returns them; without it all pairs of the batch
  count;
- `reference` [m, d] with `reference_labels` [m]: what to compare with instead of the batch, such
  as a memory. Nothing is excluded then, unless `self_slots` [n] names the column that holds each
  anchor itself (-1: none does).
"""

from dml.losses.angular import Angular
from dml.losses.arcface import ArcFace
from dml.losses.center import Center
from dml.losses.circle import Circle
from dml.losses.circle_softmax import CircleSoftmax
from dml.losses.contrastive import Contrastive
from dml.losses.cosface import CosFace
from dml.losses.cross_entropy import CrossEntropy
from dml.losses.fast_ap import FastAP
from dml.losses.focal import Focal
from dml.losses.island import Island
from dml.losses.lifted_structure import LiftedStructure
from dml.losses.log_ratio import LogRatio
from dml.losses.margin import Margin
from dml.losses.multi_similarity import MultiSimilarity
from dml.losses.n_pair import NPair
from dml.losses.norm_softmax import NormSoftmax
from dml.losses.nt_xent import NTXent
from dml.losses.proxy_anchor import ProxyAnchor
from dml.losses.proxy_nca import ProxyNCA
from dml.losses.quadruplet import Quadruplet
from dml.losses.ranked_list import RankedList
from dml.losses.recall_at_k import RecallAtK
from dml.losses.roadmap import Roadmap
from dml.losses.smooth_ap import SmoothAP
from dml.losses.snr_contrastive import SNRContrastive
from dml.losses.soft_triple import SoftTriple
from dml.losses.sphereface import SphereFace
from dml.losses.sub_center_arcface import SubCenterArcFace
from dml.losses.sup_con import SupCon
from dml.losses.triplet import Triplet
from dml.losses.tuplet_margin import TupletMargin

__all__ = [
    "Angular",
    "ArcFace",
    "Center",
    "Circle",
    "CircleSoftmax",
    "Contrastive",
    "CosFace",
    "CrossEntropy",
    "FastAP",
    "Focal",
    "Island",
    "LiftedStructure",
    "LogRatio",
    "Margin",
    "MultiSimilarity",
    "NPair",
    "NTXent",
    "NormSoftmax",
    "ProxyAnchor",
    "ProxyNCA",
    "Quadruplet",
    "RankedList",
    "RecallAtK",
    "Roadmap",
    "SNRContrastive",
    "SmoothAP",
    "SoftTriple",
    "SphereFace",
    "SubCenterArcFace",
    "SupCon",
    "Triplet",
    "TupletMargin",
]
