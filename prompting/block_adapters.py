"""Small modules that a method learns beside the frozen blocks of a tower: low-rank paths and bottleneck adapters.

The CLIP stays as it is. The towers take {layer: BlockAdapter} for a pass and compute the blocks with what is added to
them, so that everything that makes the towers cheap holds as before: no padding, a shared prefix, and a last block for
the read-out tokens only.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompting.blocks import Block
from prompting.errors import PromptingError

AT_INPUT = -1  # the layer of an adapter that stands in front of all blocks
Norm = Callable[[Tensor], Tensor]


class BlockAdapter(nn.Module):
    """What is added within one block. A subclass overrides what it has; None adds nothing.

    Each token is treated by itself, whatever its place: which tokens come together in a call, (..., T, W), is the
    tower's affair. They come in float32, also where the tower runs in half precision.
    """

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn for each token, as dropout does. Tokens that classes share are then computed
        for each class, which has draws of its own."""
        return False

    def project(self, normed: Tensor, part: str) -> Tensor | None:
        """What is added to the query, key or value of the tokens.

        normed: (..., T, W), behind the block's first LayerNorm; part: q, k or v. Returns (..., T, W)."""
        return None

    def output(self, attended: Tensor) -> Tensor | None:
        """What is added to the output projection of attention: (..., T, W), its input, -> (..., T, W)."""
        return None

    def beside(self, x: Tensor, norm: Norm) -> Tensor | None:
        """What is added to the block's output: (..., T, W), the block's input, -> (..., T, W).

        norm: the block's first LayerNorm; at the input of the tower (`AT_INPUT`) nothing but x itself."""
        return None


Adapters = Mapping[int, BlockAdapter]


class AdaptedBlock(Block):
    """A block, which is not whole, with what a BlockAdapter adds."""

    def __init__(self, block: Block, adapter: BlockAdapter) -> None:
        vars(self).update(vars(block))
        self.adapter, self.dtype = adapter, block.attn.in_proj_weight.dtype

    def _project(self, x: Tensor, first: int, last: int) -> Tensor:
        normed, width = self.ln_1(x), x.shape[-1]
        rows = slice(first * width, last * width)
        y = F.linear(normed, self.attn.in_proj_weight[rows], self.attn.in_proj_bias[rows])
        tokens = normed.float()
        added = [self.adapter.project(tokens, part) for part in "qkv"[first:last]]
        return _plus_parts(y, added)

    def _norm(self, x: Tensor) -> Tensor:
        normed: Tensor = self.ln_1(x.to(self.dtype)).float()
        return normed

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        y = _plus(self.attn.out_proj(attended), self.adapter.output(attended.float()))
        inner = x + y
        return _plus(inner + self._feed_forward(self.ln_2(inner)), self.adapter.beside(x.float(), self._norm))


def adapted(blocks: list[Block], adapters: Adapters | None) -> list[Block]:
    """The blocks with their adapters. Raises PromptingError for an adapter of a layer that the tower lacks, and where
    one of the blocks, whichever, can only be called as a whole: then all of them are."""
    beyond = [layer for layer in adapters or () if not AT_INPUT <= layer < len(blocks)]
    if beyond:
        raise PromptingError(f"there is an adapter for block {beyond[0]}; this tower has the blocks 0 to "
                             f"{len(blocks) - 1}")
    if any(layer != AT_INPUT for layer in adapters or ()) and any(block.whole for block in blocks):
        raise PromptingError("adapters stand beside the parts of CLIP's own blocks; a block of this CLIP is another "
                             "one, or has hooks")
    return [AdaptedBlock(block, adapters[layer]) if adapters and layer in adapters else block
            for layer, block in enumerate(blocks)]


def at_input(x: Tensor, adapters: Adapters | None) -> Tensor:
    """The tokens in front of the first block, with what an adapter there adds."""
    if not adapters or AT_INPUT not in adapters:
        return x
    return _plus(x, adapters[AT_INPUT].beside(x.float(), lambda tokens: tokens))


def draw(adapters: Adapters | None) -> bool:
    """Whether one of the adapters draws random numbers."""
    return any(adapter.draws for adapter in (adapters or {}).values())


def _plus(x: Tensor, added: Tensor | None) -> Tensor:
    return x if added is None else x + added.to(x.dtype)


def _plus_parts(x: Tensor, added: list[Tensor | None]) -> Tensor:
    """x (..., T, n W) with n tensors (..., T, W) added to its parts."""
    if all(part is None for part in added):
        return x
    return torch.cat([_plus(own, more) for own, more in zip(x.chunk(len(added), dim=-1), added)], dim=-1)
