"""One residual attention block of a CLIP tower, taken apart so that queries and keys may come from different tokens.

Published prompt-learning code runs the block as a whole over every token. Here the same weights serve three uses: all
tokens at once, a suffix that looks back at a prefix shared by all classes, and a last block that computes only the
token which is read out.
"""
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def differentiable_attention():
    """Context in which the forward pass of attention has a backward that can itself be differentiated.

    The fused kernels' backward cannot; second-order meta-gradients need this around the forward pass."""
    return sdpa_kernel(SDPBackend.MATH)


class Block:
    """Adapter of OpenAI's `ResidualAttentionBlock`; tokens are batch-first, (..., T, W).

    Keys and values are (..., heads, T, W / heads).
    """

    def __init__(self, block):
        self.ln_1, self.ln_2, self.attn, self.mlp = block.ln_1, block.ln_2, block.attn, block.mlp
        self.heads = block.attn.num_heads

    def _project(self, x, first, last):
        """Rows `first` to `last` (in units of the width) of the stacked query, key, value projection."""
        width = x.shape[-1]
        rows = slice(first * width, last * width)
        y = F.linear(x, self.attn.in_proj_weight[rows], self.attn.in_proj_bias[rows])
        return [part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in y.chunk(last - first, dim=-1)]

    def query_key_value(self, x):
        return self._project(self.ln_1(x), 0, 3)

    def key_value(self, x):
        return self._project(self.ln_1(x), 1, 3)

    def query(self, x):
        return self._project(self.ln_1(x), 0, 1)[0]

    def finish(self, x, q, k, v, mask=None, causal=False):
        """The block's output for the tokens x (..., T, W) whose queries are q; `mask` is True where q may look."""
        if q.dim() == 5:  # (G, C, heads, T, d): the attention kernels take one batch dimension
            groups = q.shape[:2]
            if mask is not None and mask.dim() == 5:
                mask = mask.expand(*groups, *mask.shape[2:]).flatten(0, 1)
            y = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v)), attn_mask=mask)
            y = y.unflatten(0, groups)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + self.attn.out_proj(y.transpose(-3, -2).flatten(-2))
        return x + self.mlp(self.ln_2(x))

    def __call__(self, x, causal=False):
        """All tokens (..., T, W) -> the same."""
        return self.finish(x, *self.query_key_value(x), causal=causal)


def read_at(x, positions):
    """x (G, C, T, W), positions (C,) -> (G, C, 1, W): the token at its class's position."""
    index = positions.view(1, -1, 1, 1).expand(x.shape[0], -1, 1, x.shape[-1])
    return torch.gather(x, 2, index)
