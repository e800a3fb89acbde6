"""The bottleneck network behind a frozen feature that CLIP-Adapter introduced and others took over."""
from torch import nn


class Adapter(nn.Module):
    """Two layers without biases, ReLU after each: (B, E) -> (B, E).

    Args:
        embed_dim: E; reduction: the inner width is E // reduction.
    """

    def __init__(self, embed_dim, reduction=4):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(embed_dim, embed_dim // reduction, bias=False), nn.ReLU(),
            nn.Linear(embed_dim // reduction, embed_dim, bias=False), nn.ReLU(),
        )

    def forward(self, features):
        return self.fc(features)
