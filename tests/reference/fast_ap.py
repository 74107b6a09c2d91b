"""FastAP by loops (Cakir et al., CVPR 2019), the query itself not counted."""

import torch

VARIANTS = [{"bins": 10}, {"bins": 1}, {"bins": 17}]


def loss(x, labels, bins):
    unit = [row / row.norm() for row in x]
    delta = 4 / bins
    rows = []
    for q in range(len(x)):
        others = [i for i in range(len(x)) if i != q]
        positives = [i for i in others if labels[i] == labels[q]]
        if not positives:
            continue
        squares = {i: ((unit[q] - unit[i]) ** 2).sum() for i in others}
        ap, upto, upto_positive = 0, 0, 0
        for b in range(bins + 1):
            h, h_positive = 0, 0
            for i in others:
                pulse = torch.relu(1 - (squares[i] - b * delta).abs() / delta)
                h = h + pulse
                if i in positives:
                    h_positive = h_positive + pulse
            upto, upto_positive = upto + h, upto_positive + h_positive
            if upto.item() > 0:
                ap = ap + h_positive * upto_positive / upto
        rows.append(1 - ap / len(positives))
    return sum(rows) / max(len(rows), 1) + 0 * x.sum()
