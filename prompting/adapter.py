"""The bottleneck network behind a frozen feature that CLIP-Adapter introduced and others took over."""
from __future__ import annotations

from torch import Tensor, nn


class Adapter(nn.Module):
    """Two layers without biases, a ReLU after each: (B, E) -> (B, E).

    Args:
        embed_dim: E; reduction: the inner width is E // reduction.
    """

    def __init__(self, embed_dim: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(embed_dim, embed_dim // reduction, bias=False), nn.ReLU(),
            nn.Linear(embed_dim // reduction, embed_dim, bias=False), nn.ReLU(),
        )

    def forward(self, features: Tensor) -> Tensor:
        adapted: Tensor = self.fc(features)
        return adapted
