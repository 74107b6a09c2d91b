"""Sub-center ArcFace by loops (Deng et al., ECCV 2020), through the angle itself."""

import math

import torch

VARIANTS = [
    {"margin": 0.5, "scale": 64.0, "centers": 3},
    {"margin": 0.0, "scale": 16.0, "centers": 2},
    {"margin": 1.3, "scale": 4.0, "centers": 1},
]


def loss(x, labels, margin, scale, centers, proxies):
    total = 0
    for i in range(len(x)):
        logits = []
        for z in range(len(proxies) // centers):
            cosine = max(
                (x[i] / x[i].norm()) @ (w / w.norm())
                for w in proxies[z * centers : (z + 1) * centers]
            )
            if z == labels[i]:
                theta = torch.acos(cosine)
                if theta.item() + margin < math.pi:
                    cosine = torch.cos(theta + margin)
                else:
                    cosine = cosine - margin * math.sin(margin)
            logits.append(scale * cosine)
        total = total - torch.log_softmax(torch.stack(logits), dim=0)[labels[i]]
    return total / len(x)
