"""Rho-regularisation: Roth et al., "Revisiting Training Strategies and Generalization Performance in
Deep Metric Learning", ICML 2020, arXiv:2002.08473, section 5.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dml.types import Embeddings, IndicesTuple, Labels


class Rho:
    r"""Switches some of a miner's triplets: two images of one class are pushed apart.

        (a, p, n)  becomes  (a, a, p)   with probability p_switch, each triplet by its own draw

    The anchor takes the place of its positive, at distance 0, and the positive that of the negative.
    This keeps directions alive that tell images of one class apart, which other classes may need.
    Nothing is added to the loss: it is the choice of triplets that changes, as in the paper and the
    authors' code. (Their miner draws one triplet per anchor and, when it switches, the new negative
    at random from the class; here it is the triplet's own positive, which the distance-weighted
    miner takes from all of the class.) Losses over pairs read a switched triplet as the negative
    pair (a, p) alone.

    A miner's wrapper: `rho(embeddings, labels)` returns the miner's triplets, some of them switched.
    Draws follow torch's global generator.

    Args:
        miner: (embeddings, labels) -> triplets.
        p_switch: in [0, 1].
    """

    def __init__(self, miner: Callable[..., IndicesTuple], p_switch: float = 0.2):
        self.miner, self.p_switch = miner, p_switch

    def __call__(self, embeddings: Embeddings, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (anchor, positive, negative) in the batch; ValueError if the miner gives pairs."""
        mined = self.miner(embeddings, labels)
        if len(mined) != 3:
            raise ValueError(f"Rho switches triplets, and {self.miner} gives pairs")
        anchors, positives, negatives = mined
        switched = torch.rand(len(anchors), device=anchors.device) < self.p_switch
        return (
            anchors,
            torch.where(switched, anchors, positives),
            torch.where(switched, positives, negatives),
        )

    def __repr__(self) -> str:
        return f"Rho({self.miner}, p_switch={self.p_switch})"
