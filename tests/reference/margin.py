"""Margin loss by loops (arXiv:1706.07567) over all pairs of the batch."""

import torch

VARIANTS = [
    {"margin": 0.2, "initial_beta": 1.2, "nu": 0.0, "per_class": True},
    {"margin": 0.1, "initial_beta": 0.7, "nu": 0.3, "per_class": True},
    {"margin": 0.4, "initial_beta": 1.0, "nu": 0.1, "per_class": False},
]


def distance(u, v):
    square = ((u - v) ** 2).sum()
    # equal points: 0, with the subgradient 0 of the root
    return square.sqrt() if square.item() > 1e-24 else square


def loss(x, labels, margin, nu, per_class, initial_beta, beta):
    unit = [row / row.norm() for row in x]
    total, active = 0 * x.sum() + 0 * beta.sum(), 0
    for a in range(len(x)):
        for j in range(len(x)):
            if j == a:
                continue
            boundary = beta[labels[a] if per_class else 0]
            d = distance(unit[a], unit[j])
            sign = 1 if labels[j] == labels[a] else -1
            value = torch.relu(margin + sign * (d - boundary))
            active += value.item() > 0
            total = total + value + (nu * boundary if sign > 0 else 0)
    return total / max(active, 1)
