"""The class-disjoint split of sets for which the literature has none."""

import numpy as np


def halves(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of the first half of the classes as "train" and of the others as "test".

    labels: int64 [n], 0..C-1.  Of an odd number of classes the middle one trains.  The rule is that of
    CUB-200-2011 and Cars196 (Song et al., CVPR 2016, arXiv:1511.06452); to apply it elsewhere is our choice.
    """
    seen = labels < (int(labels.max(initial=-1)) + 2) // 2
    return {"train": np.flatnonzero(seen), "test": np.flatnonzero(~seen)}
