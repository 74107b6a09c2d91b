"""CosFace by loops (arXiv:1801.09414)."""

import torch

VARIANTS = [
    {"margin": 0.35, "scale": 64.0},
    {"margin": 0.35, "scale": 30.0},
    {"margin": 0.0, "scale": 2.0},
]


def loss(x, labels, margin, scale, proxies):
    total = 0
    for i in range(len(x)):
        sums = 0
        for z in range(len(proxies)):
            cosine = (x[i] / x[i].norm()) @ (proxies[z] / proxies[z].norm())
            if z == labels[i]:
                own = torch.exp(scale * (cosine - margin))
            else:
                sums = sums + torch.exp(scale * cosine)
        total = total - torch.log(own / (own + sums))
    return total / len(x)
