"""Ranked list loss by loops (arXiv:1903.03238), the weights without gradient."""

import math

VARIANTS = [
    {
        "boundary": 1.2,
        "margin": 0.4,
        "positive_temperature": 0.0,
        "negative_temperature": 10.0,
        "negative_weight": 0.5,
    },
    {
        "boundary": 1.4,
        "margin": 0.9,
        "positive_temperature": 3.0,
        "negative_temperature": 1.0,
        "negative_weight": 0.2,
    },
]


def distance(u, v):
    square = ((u - v) ** 2).sum()
    # equal points: 0, with the subgradient 0 of the root
    return square.sqrt() if square.item() > 1e-24 else square


def loss(x, labels, boundary, margin, positive_temperature, negative_temperature, negative_weight):
    unit = [row / row.norm() for row in x]
    rows = []
    for a in range(len(x)):
        parts = {True: [], False: []}
        for j in range(len(x)):
            if j != a:
                d = distance(unit[a], unit[j])
                same = labels[j] == labels[a]
                beyond = d - (boundary - margin) if same else boundary - d
                if beyond.item() > 0:
                    parts[same].append(beyond)
        row = 0
        for same, temperature, weight in (
            (True, positive_temperature, 1 - negative_weight),
            (False, negative_temperature, negative_weight),
        ):
            weights = [math.exp(temperature * value.item()) for value in parts[same]]
            for w, value in zip(weights, parts[same], strict=True):
                row = row + weight * w * value / sum(weights)
        rows.append(row)
    return sum(rows) / len(rows) + 0 * x.sum()
