"""Log-ratio loss: Kim et al., "Deep Metric Learning Beyond Binary Supervision", CVPR 2019,
arXiv:1904.09626.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dml.losses.pairs import check_batch, check_finite, full_precision, mean_over
from dml.types import Embeddings


class LogRatio(nn.Module):
    r"""Log-ratio loss: ratios of embedding distances follow the ratios of label distances.

        L = mean_(a,i,j) ( log(D(f_a, f_i) / D(f_a, f_j)) - log(D(y_a, y_i) / D(y_a, y_j)) )^2

    f are embeddings, y their continuous labels (a pose, a caption's vector), D the squared Euclidean
    distance. The mean runs over all i, j of an anchor, then over the anchors. Items at distance 0 from
    the anchor, in labels or in embeddings, have no logarithm and are left out of its pairs.

    Class labels will not do: two images of a class are at label distance 0, two of different classes
    are all equally far, and no ratio is left to follow. Hence there is no loss=log_ratio on the command
    line; this class is for Python, with the label distances as second argument.

    Geometry: euclidean; embeddings keep their length.

    Shapes: embeddings [n, d], label_distances [n, n], squared, at least 0 -> scalar. An anchor with
    fewer than two items carries no term; without any such anchor the loss is 0 with gradient 0. Time
    and memory O(n^2) for O(n^3) triplets.
    """

    def forward(
        self, embeddings: Embeddings, label_distances: Float[Tensor, "n n"]
    ) -> Float[Tensor, ""]:
        """Loss of a batch; TypeError for class labels, ValueError for wrong shapes or values."""
        n = len(embeddings)
        if not torch.is_floating_point(label_distances) or label_distances.ndim != 2:
            raise TypeError(
                "LogRatio takes the squared distances between continuous labels, float [n, n], got "
                f"{label_distances.dtype} {list(label_distances.shape)}; class labels have no ratios"
            )
        if label_distances.shape != (n, n) or not (label_distances >= 0).all():
            raise ValueError(
                f"label_distances must be [{n}, {n}] and at least 0, got "
                f"{list(label_distances.shape)} with minimum {label_distances.min().item():.3g}"
            )
        with full_precision(embeddings):
            places = torch.zeros(n, dtype=torch.int64, device=embeddings.device)
            embeddings, _ = check_batch(embeddings, places)
            # Through the differences: a squared distance from norms has no digits left near 0.
            mode = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(embeddings, embeddings, compute_mode=mode)
            wanted = label_distances.to(distances)
            used = (distances.detach() > 0) & (wanted > 0)
            used &= ~torch.eye(n, dtype=torch.bool, device=used.device)
            logs = 2 * torch.where(used, distances, 1).log() - torch.where(used, wanted, 1).log()
            # The mean of (u_i - u_j)^2 over all i != j is twice the variance of u.
            count = used.sum(dim=1)
            mean = (logs * used).sum(dim=1) / count.clamp(min=1)
            squares = ((logs - mean[:, None]).square() * used).sum(dim=1)
            rows = 2 * squares / (count - 1).clamp(min=1)
            loss = mean_over(rows, count > 1)
        return check_finite(loss, embeddings=embeddings)
