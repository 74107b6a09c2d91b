"""Proxy-Anchor by loops (arXiv:2003.13911, equation 4)."""

import torch

VARIANTS = [{"margin": 0.1, "scale": 32.0}, {"margin": 0.0, "scale": 3.0}]


def loss(x, labels, margin, scale, proxies):
    pull, push = 0 * x.sum(), 0 * x.sum()
    for z in range(len(proxies)):
        sum_own, sum_others = 0, 0
        for i in range(len(x)):
            s = (x[i] / x[i].norm()) @ (proxies[z] / proxies[z].norm())
            if labels[i] == z:
                sum_own = sum_own + torch.exp(-scale * (s - margin))
            else:
                sum_others = sum_others + torch.exp(scale * (s + margin))
        pull = pull + torch.log1p(torch.as_tensor(sum_own))
        push = push + torch.log1p(torch.as_tensor(sum_others))
    return pull / len(set(labels)) + push / len(proxies)
