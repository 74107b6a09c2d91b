"""Triplet loss by loops (arXiv:1503.03832, arXiv:1703.07737) over all triplets of the batch."""

import torch

VARIANTS = [
    {"variant": "margin", "margin": 0.2, "squared_distances": True, "average": "active"},
    {"variant": "margin", "margin": 0.3, "squared_distances": False, "average": "all"},
    {"variant": "soft", "margin": 0.2, "squared_distances": False, "average": "active"},
    {"variant": "soft", "margin": 0.2, "squared_distances": True, "average": "all"},
]


def distance(u, v, squared):
    square = ((u - v) ** 2).sum()
    if squared or square.item() < 1e-24:  # equal points: 0, with the subgradient 0 of the root
        return square
    return square.sqrt()


def loss(x, labels, variant, margin, squared_distances, average):
    unit = [row / row.norm() for row in x]
    values = []
    for a in range(len(x)):
        for p in range(len(x)):
            for n in range(len(x)):
                if p == a or labels[p] != labels[a] or labels[n] == labels[a]:
                    continue
                d_p = distance(unit[a], unit[p], squared_distances)
                d_n = distance(unit[a], unit[n], squared_distances)
                if variant == "soft":
                    values.append(torch.log1p(torch.exp(d_p - d_n)))
                else:
                    values.append(torch.relu(d_p - d_n + margin))
    if average == "active":
        values = [value for value in values if value.item() > 0]
    return sum(values) / max(len(values), 1) + 0 * x.sum()
