"""ArcFace by loops (arXiv:1801.07698), through the angle itself."""

import math

import torch

VARIANTS = [
    {"margin": 0.5, "scale": 64.0},
    {"margin": 0.0, "scale": 16.0},
    {"margin": 1.3, "scale": 4.0},  # many samples beyond theta = pi - m
]


def loss(x, labels, margin, scale, proxies):
    total = 0
    for i in range(len(x)):
        logits = []
        for z in range(len(proxies)):
            cosine = (x[i] / x[i].norm()) @ (proxies[z] / proxies[z].norm())
            if z == labels[i]:
                theta = torch.acos(cosine)
                if theta.item() + margin < math.pi:
                    cosine = torch.cos(theta + margin)
                else:
                    cosine = cosine - margin * math.sin(margin)
            logits.append(scale * cosine)
        logits = torch.stack(logits)
        total = total - torch.log_softmax(logits, dim=0)[labels[i]]
    return total / len(x)
