"""Supervised contrastive loss by loops (arXiv:2004.11362, equation 2)."""

import torch
from torch.nn.functional import cosine_similarity

VARIANTS = [{"temperature": 0.1}, {"temperature": 1.0}]


def loss(x, labels, temperature):
    rows = []
    for i in range(len(x)):
        others = [k for k in range(len(x)) if k != i]
        e = {k: torch.exp(cosine_similarity(x[i], x[k], dim=0) / temperature) for k in others}
        positives = [k for k in others if labels[k] == labels[i]]
        if positives:
            logs = [torch.log(e[p] / sum(e.values())) for p in positives]
            rows.append(-sum(logs) / len(positives))
    return sum(rows) / max(len(rows), 1) + 0 * x.sum()
