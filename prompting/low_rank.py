"""Low-rank paths beside the attention of a block: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
arXiv 2106.09685."""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompting.block_adapters import BlockAdapter
from prompting.errors import PromptingError

PARTS = "qkvo"  # the query, key and value projections of attention, and its output projection
# Which blocks have paths, as a share (first, end) of the tower's depth; top3 are the last three.
SHARES = {"all": (0.0, 1.0), "bottom": (0.0, 1 / 3), "mid": (1 / 3, 2 / 3), "up": (2 / 3, 1.0),
          "half-bottom": (0.0, 0.5), "half-up": (0.5, 1.0)}
TOP = "top3"
POSITIONS = (*SHARES, TOP)


def layers_at(position: str, depth: int) -> range:
    """The blocks (from 0) of a tower of so many that a position means. Of 12 blocks "mid" is 4 to 7.

    Raises PromptingError where that is none of them."""
    first, end = (round(share * depth) for share in SHARES.get(position, (1 - 3 / depth, 1.0)))
    layers = range(max(0, first), end)
    if not layers:
        raise PromptingError(f"'{position}' is none of the {depth} blocks of a tower; take all")
    return layers


class LowRankPaths(BlockAdapter):
    """y + scale B A d(x) for some of the four projections y of a block's attention, where d is dropout: each projection
    drops entries of its own, in training only. A starts uniform within 1 / sqrt(width), B as 0.

    Args:
        width: of the tower; parts: letters of `PARTS`; rank: rows of A; dropout: the share of dropped entries.
    """

    def __init__(self, width: int, parts: Iterable[str], rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout, self.parts = scale, dropout, "".join(parts)
        bound = width ** -0.5  # Kaiming's for a = sqrt(5)
        self.A = nn.ParameterDict({part: nn.Parameter(torch.empty(rank, width).uniform_(-bound, bound))
                                   for part in self.parts})
        self.B = nn.ParameterDict({part: nn.Parameter(torch.zeros(width, rank)) for part in self.parts})

    @property
    def draws(self) -> bool:
        return self.training and self.dropout > 0

    def dropped(self, x: Tensor, part: str) -> Tensor:
        """d(x) of the path of a part in training; the only place where something is drawn."""
        if x.device.type != "cpu":
            return F.dropout(x, self.dropout)
        kept = torch.rand_like(x).ge_(self.dropout)  # on a CPU in less than half of F.dropout's time
        return x * kept.div_(1 - self.dropout)

    def path(self, x: Tensor, part: str) -> Tensor | None:
        """scale B A d(x), (..., W) -> (..., W); None for a part that has no path."""
        if part not in self.parts:
            return None
        inner = F.linear(self.dropped(x, part) if self.draws else x, self.A[part])
        return F.linear(inner, self.scale * self.B[part])

    def project(self, normed: Tensor, part: str) -> Tensor | None:
        return self.path(normed, part)

    def output(self, attended: Tensor) -> Tensor | None:
        return self.path(attended, "o")
