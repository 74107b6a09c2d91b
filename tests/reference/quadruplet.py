"""Quadruplet loss by loops (arXiv:1704.01719) over all triplets and quadruplets of the batch."""

import torch

VARIANTS = [
    {"margin": 0.2, "pair_margin": 0.1, "average": "active"},
    {"margin": 1.5, "pair_margin": 2.5, "average": "all"},
]


def loss(x, labels, margin, pair_margin, average):
    unit = [row / row.norm() for row in x]
    d = [[((u - v) ** 2).sum() for v in unit] for u in unit]
    positions = range(len(x))
    triplets, quadruplets = [], []
    for i in positions:
        for j in positions:
            if j == i or labels[j] != labels[i]:
                continue
            for k in positions:
                if labels[k] == labels[i]:
                    continue
                triplets.append(torch.relu(d[i][j] - d[i][k] + margin))
                for m in positions:
                    if labels[m] not in (labels[i], labels[k]):
                        quadruplets.append(torch.relu(d[i][j] - d[m][k] + pair_margin))
    total = 0 * x.sum()
    for values in (triplets, quadruplets):
        if average == "active":
            values = [value for value in values if value.item() > 0]
        total = total + sum(values) / max(len(values), 1)
    return total
