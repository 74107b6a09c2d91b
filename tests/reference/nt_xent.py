"""NT-Xent by loops (arXiv:2002.05709, equation 1), each positive pair against its negatives."""

import torch
from torch.nn.functional import cosine_similarity

VARIANTS = [{"temperature": 0.1}, {"temperature": 0.5}]


def loss(x, labels, temperature):
    values = []
    for a in range(len(x)):
        others = [k for k in range(len(x)) if k != a]
        e = {k: torch.exp(cosine_similarity(x[a], x[k], dim=0) / temperature) for k in others}
        negatives = sum(e[n] for n in others if labels[n] != labels[a])
        for p in others:
            if labels[p] == labels[a]:
                values.append(-torch.log(e[p] / (e[p] + negatives)))
    return sum(values) / max(len(values), 1) + 0 * x.sum()
