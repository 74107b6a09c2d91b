"""Tuplet margin loss by loops (Yu and Tao, ICCV 2019), through the angle itself."""

import math

import torch

VARIANTS = [
    {"margin": 0.1, "scale": 64.0},
    {"margin": 0.0, "scale": 2.0},
    {"margin": 0.8, "scale": 8.0},
]


def loss(x, labels, margin, scale):
    unit = [row / row.norm() for row in x]
    values = []
    for a in range(len(x)):
        for p in range(len(x)):
            if p == a or labels[p] != labels[a]:
                continue
            cosine = unit[a] @ unit[p]
            # at the angle 0 the slope is infinite in the cosine; there the angle counts as constant
            near = 1 - cosine.item() ** 2 < 1e-14
            eased = cosine * math.cos(margin) if near else torch.cos(torch.acos(cosine) - margin)
            sums = 0
            for n in range(len(x)):
                if labels[n] != labels[a]:
                    sums = sums + torch.exp(scale * (unit[a] @ unit[n] - eased))
            values.append(torch.log1p(torch.as_tensor(sums)))
    return sum(values) / max(len(values), 1) + 0 * x.sum()
