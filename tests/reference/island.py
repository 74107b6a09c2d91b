"""Softmax cross-entropy with island loss by loops (arXiv:1710.03144), mean over pairs of centres."""

import torch

VARIANTS = [
    {"center_weight": 0.01, "pair_weight": 10.0},
    {"center_weight": 0.5, "pair_weight": 0.3},
]


def loss(x, labels, center_weight, pair_weight, proxies, bias, centers):
    total = 0
    for i in range(len(x)):
        e = [torch.exp(proxies[z] @ x[i] + bias[z]) for z in range(len(proxies))]
        total = total - torch.log(e[labels[i]] / sum(e))
        total = total + center_weight / 2 * ((x[i] - centers[labels[i]]) ** 2).sum()
    between, count = 0, 0
    for j in range(len(centers)):
        for k in range(len(centers)):
            if k != j:
                cosine = centers[j] @ centers[k] / (centers[j].norm() * centers[k].norm())
                between = between + cosine + 1
                count += 1
    return total / len(x) + center_weight * pair_weight * between / count
