"""Angular loss by loops (arXiv:1708.01682), over all positive pairs."""

import math

import torch

VARIANTS = [{"degrees": 45.0}, {"degrees": 36.0}, {"degrees": 70.0}]


def loss(x, labels, degrees):
    unit = [row / row.norm() for row in x]
    t2 = math.tan(math.radians(degrees)) ** 2
    values = []
    for a in range(len(x)):
        for p in range(len(x)):
            if p == a or labels[p] != labels[a]:
                continue
            sums = 0
            for n in range(len(x)):
                if labels[n] != labels[a]:
                    f = 4 * t2 * (unit[a] + unit[p]) @ unit[n] - 2 * (1 + t2) * unit[a] @ unit[p]
                    sums = sums + torch.exp(f)
            values.append(torch.log1p(torch.as_tensor(sums)))
    return sum(values) / max(len(values), 1) + 0 * x.sum()
