"""ROADMAP by loops (arXiv:2110.01445), the query itself not ranked."""

import math

import torch
from torch.nn.functional import cosine_similarity

VARIANTS = [
    {
        "temperature": 0.01,
        "slope": 100.0,
        "knee": 0.05,
        "positive_margin": 0.9,
        "negative_margin": 0.6,
        "calibration": 0.5,
    },
    {
        "temperature": 0.3,
        "slope": 2.0,
        "knee": 0.4,
        "positive_margin": 0.5,
        "negative_margin": -0.2,
        "calibration": 0.2,
    },
    {
        "temperature": 0.1,
        "slope": 10.0,
        "knee": 0.0,
        "positive_margin": 0.9,
        "negative_margin": 0.6,
        "calibration": 0.0,
    },
]
TIE = 1e-12  # equal similarities, computed twice, may differ in the last digit


def loss(x, labels, temperature, slope, knee, positive_margin, negative_margin, calibration):
    def step(lead):
        if lead.item() <= TIE:
            return torch.sigmoid(lead / temperature)
        if lead.item() <= knee:
            return torch.sigmoid(lead / temperature) + 0.5
        return slope * (lead - knee) + 1 / (1 + math.exp(-knee / temperature)) + 0.5

    aps, shorts, excesses = [], [], []
    for q in range(len(x)):
        s = {i: cosine_similarity(x[q], x[i], dim=0) for i in range(len(x)) if i != q}
        positives = [i for i in s if labels[i] == labels[q]]
        negatives = [i for i in s if labels[i] != labels[q]]
        if positives:
            precisions = []
            for i in positives:
                rank_p = sum((s[j] - s[i]).item() >= -TIE for j in positives)
                rank_n = sum(step(s[j] - s[i]) for j in negatives)
                precisions.append(rank_p / (rank_p + rank_n) + 0 * s[i])
            aps.append(1 - sum(precisions) / len(positives))
            shorts.append(
                sum(torch.relu(positive_margin - s[i]) for i in positives) / len(positives)
            )
        if negatives:
            excesses.append(
                sum(torch.relu(s[j] - negative_margin) for j in negatives) / len(negatives)
            )
    sup_ap, short, excess = (sum(rows) / max(len(rows), 1) for rows in (aps, shorts, excesses))
    return (1 - calibration) * sup_ap + calibration * (short + excess) + 0 * x.sum()
