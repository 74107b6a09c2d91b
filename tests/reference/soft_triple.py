"""SoftTriple by loops (arXiv:1909.05235)."""

import torch

VARIANTS = [
    {"centers": 10, "scale": 20.0, "gamma": 0.1, "margin": 0.01, "merge_weight": 0.2},
    {"centers": 2, "scale": 8.0, "gamma": 1.0, "margin": 0.3, "merge_weight": 5.0},
    {"centers": 1, "scale": 20.0, "gamma": 0.1, "margin": 0.01, "merge_weight": 0.2},
]


def loss(x, labels, centers, scale, gamma, margin, merge_weight, proxies):
    classes = len(proxies) // centers
    w = [[proxies[z * centers + k] for k in range(centers)] for z in range(classes)]
    w = [[v / v.norm() for v in row] for row in w]
    total = 0
    for i in range(len(x)):
        unit = x[i] / x[i].norm()
        sums = 0
        for z in range(classes):
            weights = [torch.exp(unit @ v / gamma) for v in w[z]]
            s = sum(e * (unit @ v) for e, v in zip(weights, w[z], strict=True)) / sum(weights)
            if z == labels[i]:
                own = torch.exp(scale * (s - margin))
                sums = sums + own
            else:
                sums = sums + torch.exp(scale * s)
        total = total - torch.log(own / sums)
    merge = 0
    for z in range(classes):
        for t in range(centers):
            for s in range(t + 1, centers):
                merge = merge + torch.sqrt(2 - 2 * (w[z][t] @ w[z][s]))
    if centers > 1:
        merge = merge / (classes * centers * (centers - 1))
    return total / len(x) + merge_weight * merge
