"""SphereFace by loops (arXiv:1704.08063, equation 7), through the angle itself."""

import math

import torch

VARIANTS = [
    {"margin": 4, "blend": 5.0},
    {"margin": 4, "blend": 0.0},
    {"margin": 3, "blend": 0.5},
    {"margin": 1, "blend": 0.0},
]


def loss(x, labels, margin, blend, proxies):
    total = 0
    for i in range(len(x)):
        logits = []
        for z in range(len(proxies)):
            cosine = (x[i] / x[i].norm()) @ (proxies[z] / proxies[z].norm())
            if z == labels[i]:
                theta = torch.acos(cosine)
                for k in range(margin):
                    if k * math.pi / margin <= theta.item() <= (k + 1) * math.pi / margin:
                        psi = (-1) ** k * torch.cos(margin * theta) - 2 * k
                cosine = (blend * cosine + psi) / (1 + blend)
            logits.append(x[i].norm() * cosine)
        total = total - torch.log_softmax(torch.stack(logits), dim=0)[labels[i]]
    return total / len(x)
