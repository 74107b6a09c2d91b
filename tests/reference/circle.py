"""Circle loss by loops (arXiv:2002.10857): mean over the anchors that have a positive."""

import torch
from torch.nn.functional import cosine_similarity

VARIANTS = [
    {"margin": 0.4, "scale": 80.0},
    {"margin": 0.25, "scale": 4.0},
]


def loss(x, labels, margin, scale):
    rows = []
    for a in range(len(x)):
        sum_p, sum_n, positives = 0.0, 0.0, 0
        for j in range(len(x)):
            if j == a:
                continue
            s = cosine_similarity(x[a], x[j], dim=0)
            if labels[j] == labels[a]:
                alpha = max(1 + margin - s.item(), 0)
                sum_p = sum_p + torch.exp(-scale * alpha * (s - (1 - margin)))
                positives += 1
            else:
                alpha = max(s.item() + margin, 0)
                sum_n = sum_n + torch.exp(scale * alpha * (s - margin))
        if positives:
            rows.append(torch.log1p(torch.as_tensor(sum_n * sum_p)))
    return sum(rows) / max(len(rows), 1) + 0 * x.sum()
