"""Normalised softmax by loops (arXiv:1811.12649)."""

import torch

VARIANTS = [{"temperature": 0.05}, {"temperature": 1.0}]


def loss(x, labels, temperature, proxies):
    total = 0
    for i in range(len(x)):
        sums = 0
        for z in range(len(proxies)):
            cosine = (x[i] / x[i].norm()) @ (proxies[z] / proxies[z].norm())
            e = torch.exp(cosine / temperature)
            sums = sums + e
            if z == labels[i]:
                own = e
        total = total - torch.log(own / sums)
    return total / len(x)
