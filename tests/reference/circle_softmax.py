"""Circle loss with class centres by loops (arXiv:2002.10857)."""

import torch

VARIANTS = [
    {"margin": 0.25, "scale": 256.0},
    {"margin": 0.35, "scale": 64.0},
    {"margin": 0.4, "scale": 4.0},
]


def loss(x, labels, margin, scale, proxies):
    total = 0
    for i in range(len(x)):
        exponents = []
        for z in range(len(proxies)):
            s = (x[i] / x[i].norm()) @ (proxies[z] / proxies[z].norm())
            if z == labels[i]:
                alpha = max(1 + margin - s.item(), 0)
                own = -scale * alpha * (s - (1 - margin))
            else:
                alpha = max(s.item() + margin, 0)
                exponents.append(scale * alpha * (s - margin))
        # log(1 + sum_z exp(a_z) exp(b)), the exponents added before they overflow
        summands = [torch.zeros_like(own), *(own + e for e in exponents)]
        total = total + torch.logsumexp(torch.stack(summands), dim=0)
    return total / len(x)
