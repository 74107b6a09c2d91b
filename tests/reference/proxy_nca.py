"""Proxy-NCA by loops (arXiv:1703.07464), and the form of ProxyNCA++ (arXiv:2004.01113)."""

import torch

VARIANTS = [
    {"scale": 9.0, "positive_in_denominator": False},
    {"scale": 9.0, "positive_in_denominator": True},
    {"scale": 1.0, "positive_in_denominator": False},
]


def loss(x, labels, scale, positive_in_denominator, proxies):
    total = 0
    for i in range(len(x)):
        unit = x[i] / x[i].norm()
        own, others = 0, 0
        for z in range(len(proxies)):
            square = ((unit - proxies[z] / proxies[z].norm()) ** 2).sum()
            if z == labels[i]:
                own = torch.exp(-scale * square)
            if z != labels[i] or positive_in_denominator:
                others = others + torch.exp(-scale * square)
        total = total - torch.log(own / others)
    return total / len(x)
