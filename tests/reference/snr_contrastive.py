"""SNR contrastive loss by loops (arXiv:1904.02616)."""

import torch

VARIANTS = [
    {"positive_margin": 0.0, "negative_margin": 1.0, "mean_weight": 0.005},
    {"positive_margin": 0.3, "negative_margin": 2.5, "mean_weight": 0.5},
]


def loss(x, labels, positive_margin, negative_margin, mean_weight):
    positives, negatives = [], []
    for i in range(len(x)):
        for j in range(len(x)):
            if j == i:
                continue
            d = torch.var(x[i] - x[j]) / torch.var(x[i])
            if labels[j] == labels[i]:
                positives.append(torch.relu(d - positive_margin))
            else:
                negatives.append(torch.relu(negative_margin - d))
    total = mean_weight * sum(x[i].sum().abs() for i in range(len(x))) / len(x)
    total = total * (len(x) > 1)  # over the anchors that have a pair
    for values in (positives, negatives):
        above = [value for value in values if value.item() > 0]
        total = total + sum(above) / max(len(above), 1)
    return total
