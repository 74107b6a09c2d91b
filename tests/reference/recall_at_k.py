"""Recall@k surrogate by loops (arXiv:2108.11179), the query itself not ranked."""

import torch
from torch.nn.functional import cosine_similarity

VARIANTS = [
    {"k": [1, 2, 4, 8, 16], "k_temperature": 1.0, "rank_temperature": 0.01},
    {"k": [3], "k_temperature": 0.5, "rank_temperature": 0.2},
    {"k": [2, 1], "k_temperature": 10.0, "rank_temperature": 0.3},
]


def loss(x, labels, k, k_temperature, rank_temperature):
    rows = []
    for q in range(len(x)):
        s = {i: cosine_similarity(x[q], x[i], dim=0) for i in range(len(x)) if i != q}
        positives = [i for i in s if labels[i] == labels[q]]
        if not positives:
            continue
        recalls = []
        for n in k:
            found = 0
            for i in positives:
                rank = 1 + 0 * s[i]
                rank = rank + sum(
                    torch.sigmoid((s[j] - s[i]) / rank_temperature) for j in s if j != i
                )
                found = found + torch.sigmoid((n - rank) / k_temperature)
            recalls.append(torch.clamp(found, max=n) / min(n, len(positives)))
        rows.append(1 - sum(recalls) / len(k))
    return sum(rows) / max(len(rows), 1) + 0 * x.sum()
