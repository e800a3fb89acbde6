"""Factors that act in one direction only: in the forward pass, or on the gradient."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Factors(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, forward: float, backward: float) -> Tensor:
        return x * forward

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.backward_factor = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.backward_factor, None, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by `factor`."""
    scaled: Tensor = _Factors.apply(x, 1.0, factor)
    return scaled


def scale_value(x: Tensor, factor: float) -> Tensor:
    """factor x, with the gradient of x itself."""
    scaled: Tensor = _Factors.apply(x, factor, 1.0)
    return scaled
