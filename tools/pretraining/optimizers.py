"""Muon and AdamW, and the learning rate of a step."""

import math

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose update is the nearest orthogonal matrix (Jordan et al. 2024), for the matrices inside the blocks.

    The updates are scaled to the size of AdamW's, so that one learning rate serves both.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                momentum = state.setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = _orthogonal(p.grad.lerp(momentum, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
        return loss


def _orthogonal(matrix, steps=5):
    """Newton-Schulz iteration towards the orthogonal factor of a matrix."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def build_optimizers(tower, others, lr):
    """Muon for the matrices of the tower's blocks, AdamW for everything else. others: modules beside the tower."""
    named = [*tower.named_parameters(), *(pair for other in others for pair in other.named_parameters())]
    matrices = [p for name, p in named if "resblocks." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [Muon(matrices, lr), torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.01)]


def learning_rate(step, steps, peak, warmup=100):
    """Linear warm-up, then a cosine to 2 % of the peak at the end."""
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
