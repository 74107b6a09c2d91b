"""Contrastive loss by loops (Hadsell et al. 2006): mean over positive plus mean over negative pairs."""

import torch

VARIANTS = [
    {"positive_margin": 0.0, "negative_margin": 1.0, "squared_hinge": False, "average": "active"},
    {"positive_margin": 0.0, "negative_margin": 1.0, "squared_hinge": True, "average": "active"},
    {"positive_margin": 0.3, "negative_margin": 1.2, "squared_hinge": False, "average": "active"},
    {"positive_margin": 0.2, "negative_margin": 0.7, "squared_hinge": True, "average": "all"},
]


def distance(u, v):
    square = ((u - v) ** 2).sum()
    return square if square.item() < 1e-24 else square.sqrt()  # equal points: 0 with gradient 0


def loss(x, labels, positive_margin, negative_margin, squared_hinge, average):
    unit = [row / row.norm() for row in x]
    positives, negatives = [], []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):  # each pair once
            d = distance(unit[i], unit[j])
            if labels[i] == labels[j]:
                hinge, kind = torch.relu(d - positive_margin), positives
            else:
                hinge, kind = torch.relu(negative_margin - d), negatives
            kind.append(0.5 * hinge**2 if squared_hinge else hinge)
    total = 0 * x.sum()
    for kind in (positives, negatives):
        counted = [value for value in kind if value.item() > 0] if average == "active" else kind
        total = total + sum(counted) / max(len(counted), 1)
    return total
