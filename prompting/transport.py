"""Optimal transport between several features of an image and several of a class: Chen et al., "PLOT: Prompt Learning
with Optimal Transport for Vision-Language Models", arXiv 2210.01253.

Letters in shapes: B images with M features each, C classes with N features each, E the width of a feature.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prompting.model import PromptedCLIP
from prompting.towers import normalize

if TYPE_CHECKING:
    from prompting.towers import Towers

EPSILON = 0.1  # weight of the entropy: the larger, the more even the plans
MOST_ROUNDS = 100
CLOSE_ENOUGH = 0.01  # of the factors of the M features, from one round to the next


def transport_plans(similarity: Tensor) -> tuple[Tensor, int]:
    """Entropic transport plans by Sinkhorn's iteration, for the cost 1 - similarity and even weights 1/M and 1/N.

    All pairs of a call make the same number of rounds: they stop when the mean change over all pairs and their M
    features is below 0.01. So a plan depends, by what the last rounds change, on what else is in the call.

    Args:
        similarity: cosines (..., M, N).
    Returns:
        (plans (..., M, N), each of sum 1 and without gradients; the number of rounds).
    """
    with torch.no_grad():
        kernel = torch.exp((similarity - 1) / EPSILON).contiguous()
        m, n = kernel.shape[-2:]
        rows, columns, rounds = kernel.new_ones(kernel.shape[:-1]), kernel.new_ones(*kernel.shape[:-2], n), 0
        while rounds < MOST_ROUNDS:
            rounds, before = rounds + 1, rows
            rows = 1 / m / (kernel @ columns[..., None])[..., 0]
            columns = 1 / n / (rows[..., None, :] @ kernel)[..., 0, :]
            if (rows - before).abs().mean() < CLOSE_ENOUGH:
                break
        return rows[..., None] * kernel * columns[..., None, :], rounds


class TransportCLIP(PromptedCLIP):
    """A CLIP with several features per image and per class, compared by transport.

    Attributes:
        sinkhorn_rounds: how many rounds the last call took.
    """

    def __init__(self, towers: Towers) -> None:
        super().__init__(towers)
        self.sinkhorn_rounds = 0

    def transported(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Logits (B, C) float32: the scaled cosines of all pairs of features, weighted by the plan.

        The plan is a constant: gradients run through the cosines alone.

        Args:
            image_features: (B, M, E); class_features: (N, C, E); both of any length.
        """
        with torch.autocast(image_features.device.type, enabled=False):  # a cost is divided by 0.1 and exponentiated
            similarity = torch.einsum("bme,nce->bcmn", normalize(image_features), normalize(class_features))
            plans, self.sinkhorn_rounds = transport_plans(similarity)
            return self.towers.logit_scale * (plans * similarity).sum(dim=(-2, -1))
