"""Softmax cross-entropy with label smoothing by loops (arXiv:1512.00567, section 7)."""

import torch

VARIANTS = [
    {"label_smoothing": 0.1, "with_bias": True},
    {"label_smoothing": 0.0, "with_bias": False},
    {"label_smoothing": 0.5, "with_bias": True},
]


def loss(x, labels, label_smoothing, with_bias, proxies, bias=None):
    total = 0
    for i in range(len(x)):
        products = [proxies[z] @ x[i] for z in range(len(proxies))]
        if with_bias:
            products = [product + bias[z] for z, product in enumerate(products)]
        sums = sum(torch.exp(product) for product in products)
        for z, product in enumerate(products):
            q = label_smoothing / len(products) + (1 - label_smoothing) * (z == labels[i])
            total = total - q * torch.log(torch.exp(product) / sums)
    return total / len(x)
