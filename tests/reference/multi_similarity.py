"""Multi-similarity loss by loops (arXiv:1904.06627), mining included, divided by the batch size."""

import torch
from torch.nn.functional import cosine_similarity

VARIANTS = [
    {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1},
    {"alpha": 18.0, "beta": 40.0, "base": 0.8, "epsilon": 0.4},
    {"alpha": 2.0, "beta": 10.0, "base": -0.2, "epsilon": 3.0},
]


def loss(x, labels, alpha, beta, base, epsilon):
    total = 0 * x.sum()
    for a in range(len(x)):
        positives, negatives = [], []
        for j in range(len(x)):
            if j != a:
                s = cosine_similarity(x[a], x[j], dim=0)
                (positives if labels[j] == labels[a] else negatives).append(s)
        if not positives or not negatives:
            continue
        least, most = min(s.item() for s in positives), max(s.item() for s in negatives)
        sum_p, sum_n = 0.0, 0.0
        for s in positives:
            if s.item() - epsilon < most:
                sum_p = sum_p + torch.exp(-alpha * (s - base))
        for s in negatives:
            if s.item() + epsilon > least:
                sum_n = sum_n + torch.exp(beta * (s - base))
        total = total + torch.log1p(torch.as_tensor(sum_p)) / alpha
        total = total + torch.log1p(torch.as_tensor(sum_n)) / beta
    return total / len(x)
