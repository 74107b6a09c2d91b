"""Lifted structured loss by loops: arXiv:1511.06452, equation 4, and arXiv:1703.07737's general form."""

import torch

VARIANTS = [
    {"variant": "original", "margin": 1.0},
    {"variant": "original", "margin": 0.2},
    {"variant": "generalized", "margin": 1.0},
    {"variant": "generalized", "margin": 0.2},
]


def distance(u, v):
    square = ((u - v) ** 2).sum()
    return square if square.item() < 1e-24 else square.sqrt()  # equal points: 0 with gradient 0


def loss(x, labels, variant, margin):
    n = len(x)
    if variant == "generalized":
        rows = []
        for a in range(n):
            positives = [j for j in range(n) if j != a and labels[j] == labels[a]]
            negatives = [j for j in range(n) if labels[j] != labels[a]]
            if positives and negatives:
                far = torch.log(sum(torch.exp(distance(x[a], x[p])) for p in positives))
                near = sum(torch.exp(margin - distance(x[a], x[k])) for k in negatives)
                rows.append(torch.relu(far + torch.log(near)))
            elif positives:
                rows.append(0)
        return sum(rows) / max(len(rows), 1) + 0 * x.sum()
    total, pairs = 0 * x.sum(), 0
    for i in range(n):
        for j in range(i + 1, n):
            if labels[i] != labels[j]:
                continue
            pairs += 1
            inner = 0
            for k in range(n):
                if labels[k] != labels[i]:
                    inner = inner + torch.exp(margin - distance(x[i], x[k]))
                if labels[k] != labels[j]:
                    inner = inner + torch.exp(margin - distance(x[j], x[k]))
            if not isinstance(inner, int):
                total = total + torch.relu(torch.log(inner) + distance(x[i], x[j])) ** 2
    return total / (2 * max(pairs, 1))
