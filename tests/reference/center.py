"""Softmax cross-entropy with center loss by loops (Wen et al., ECCV 2016)."""

import torch

VARIANTS = [{"center_weight": 0.003}, {"center_weight": 0.5}]


def loss(x, labels, center_weight, proxies, bias, centers):
    total = 0
    for i in range(len(x)):
        e = [torch.exp(proxies[z] @ x[i] + bias[z]) for z in range(len(proxies))]
        total = total - torch.log(e[labels[i]] / sum(e))
        total = total + center_weight / 2 * ((x[i] - centers[labels[i]]) ** 2).sum()
    return total / len(x)
