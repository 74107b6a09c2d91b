"""N-pair loss by loops (Sohn 2016): the first two images of every class are its pair."""

import torch

VARIANTS = [{"l2_weight": 0.001}, {"l2_weight": 0.0}, {"l2_weight": 0.3}]


def loss(x, labels, l2_weight):
    pairs = []
    for c in set(labels):
        members = [i for i in range(len(x)) if labels[i] == c]
        if len(members) > 1:
            pairs.append((members[0], members[1]))
    total, penalty = 0 * x.sum(), 0 * x.sum()
    for i, (anchor, positive) in enumerate(pairs):
        inner = 0 * x.sum()
        for j, (_, other) in enumerate(pairs):
            if j != i:
                inner = inner + torch.exp(x[anchor] @ x[other] - x[anchor] @ x[positive])
        total = total + torch.log1p(inner)
        penalty = penalty + (x[anchor] ** 2).sum() + (x[positive] ** 2).sum()
    count = max(len(pairs), 1)
    return total / count + l2_weight * penalty / (2 * count)
