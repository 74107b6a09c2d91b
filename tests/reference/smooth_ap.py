"""Smooth-AP by loops (arXiv:2007.12163), the query itself not ranked."""

import torch
from torch.nn.functional import cosine_similarity

VARIANTS = [{"temperature": 0.01}, {"temperature": 0.2}]


def loss(x, labels, temperature):
    def above(j, i):
        return torch.sigmoid((s[j] - s[i]) / temperature)

    rows = []
    for q in range(len(x)):
        s = {i: cosine_similarity(x[q], x[i], dim=0) for i in range(len(x)) if i != q}
        positives = [i for i in s if labels[i] == labels[q]]
        precisions = []
        for i in positives:
            rank_among_positives = 1 + sum(above(j, i) for j in positives if j != i)
            rank = 1 + sum(above(j, i) for j in s if j != i)
            precisions.append(rank_among_positives / rank)
        if positives:
            rows.append(1 - sum(precisions) / len(positives))
    return sum(rows) / max(len(rows), 1) + 0 * x.sum()
