"""One residual attention block of a CLIP tower, in parts, so that queries and keys may come from different tokens.

Published prompt-learning code runs the whole block over every token. Here the same weights have more uses: the prompts
of many classes of different lengths behind one shared prefix, layers with outputs that nobody reads, and a last block
that computes only the token which is read out.
"""
from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from clip.model import ResidualAttentionBlock

ACTIVATION = "QuickGELU"  # what the blocks compute
SLOPE = 1.702  # of CLIP's QuickGELU


def differentiable_attention() -> AbstractContextManager[None]:
    """Context in which the backward pass of attention can itself be differentiated.

    That of the fused kernels cannot. Second-order meta-gradients need this context around the forward pass."""
    return sdpa_kernel(SDPBackend.MATH)


class Block:
    """Adapter of OpenAI's `ResidualAttentionBlock`; tokens are batch-first, (..., T, W).

    Calling a block is `finish(x, attend(query(x), key, value))`, with key and value from `key_value(x)`.
    """

    def __init__(self, block: ResidualAttentionBlock) -> None:
        self.ln_1, self.ln_2, self.attn, self.mlp = block.ln_1, block.ln_2, block.attn, block.mlp
        self.heads: int = block.attn.num_heads

    def _project(self, x: Tensor, first: int, last: int) -> Tensor:
        """Rows `first` to `last` (in units of the width) of the stacked query, key, value projection."""
        width = x.shape[-1]
        rows = slice(first * width, last * width)
        return F.linear(self.ln_1(x), self.attn.in_proj_weight[rows], self.attn.in_proj_bias[rows])

    def query_key_value(self, x: Tensor) -> Tensor:
        """(..., T, W) -> (..., T, 3 W): query, key and value, concatenated."""
        return self._project(x, 0, 3)

    def key_value(self, x: Tensor) -> Tensor:
        """(..., T, W) -> (..., T, 2 W): key and value, concatenated."""
        return self._project(x, 1, 3)

    def query(self, x: Tensor) -> Tensor:
        """(..., T, W) -> (..., T, W)."""
        return self._project(x, 0, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Multi-head attention before its output projection: q (..., T, W), k and v (..., S, W) -> (..., T, W).

        mask: True where a query may attend, to be broadcast to (batch, heads, T, S), the leading dimensions as one."""
        # The attention kernels take one batch dimension.
        query, key, value = (t.reshape(-1, t.shape[-2], self.heads, t.shape[-1] // self.heads).transpose(1, 2)
                             for t in (q, k, v))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return y.transpose(1, 2).reshape(q.shape)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output for tokens x (..., T, W) and what `attend` gave for them, of the same shape."""
        x = x + self.attn.out_proj(attended)
        return x + self._feed_forward(self.ln_2(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        """CLIP's MLP with QuickGELU(h) = h sigmoid(1.702 h) = silu(1.702 h) / 1.702.

        The two factors are part of the matrix products. So the hidden layer, the largest tensor of a block, is kept
        once for the backward pass; the formula as written keeps it four times."""
        up, down = self.mlp.c_fc, self.mlp.c_proj
        h = torch.addmm(up.bias, x.flatten(0, -2), up.weight.t(), beta=SLOPE, alpha=SLOPE)
        h = F.silu(h, inplace=not h.requires_grad)
        return torch.addmm(down.bias, h, down.weight.t(), alpha=1 / SLOPE).view_as(x)

    def __call__(self, x: Tensor) -> Tensor:
        """All tokens (..., T, W) -> (..., T, W)."""
        q, k, v = self.query_key_value(x).chunk(3, dim=-1)
        return self.finish(x, self.attend(q, k, v))
