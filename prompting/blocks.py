"""One residual attention block of a CLIP tower, taken apart so that queries and keys may come from different tokens.

Published prompt-learning code runs the block as a whole over every token. Here the same weights serve more uses: the
prompts of many classes of different lengths behind one shared prefix, layers some of whose outputs nobody reads, and a
last block that computes only the token which is read out.
"""
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SLOPE = 1.702  # of CLIP's QuickGELU


def differentiable_attention():
    """Context in which the forward pass of attention has a backward that can itself be differentiated.

    The fused kernels' backward cannot; second-order meta-gradients need this around the forward pass."""
    return sdpa_kernel(SDPBackend.MATH)


class Block:
    """Adapter of OpenAI's `ResidualAttentionBlock`; tokens are batch-first, (..., T, W).

    A block is `finish(x, attend(query(x), *key_value(x)))`, which is what calling it does.
    """

    def __init__(self, block):
        self.ln_1, self.ln_2, self.attn, self.mlp = block.ln_1, block.ln_2, block.attn, block.mlp
        self.heads = block.attn.num_heads

    def _project(self, x, first, last):
        """Rows `first` to `last` (in units of the width) of the stacked query, key, value projection."""
        width = x.shape[-1]
        rows = slice(first * width, last * width)
        return F.linear(self.ln_1(x), self.attn.in_proj_weight[rows], self.attn.in_proj_bias[rows])

    def query_key_value(self, x):
        """(..., T, W) -> (..., T, 3 W), the three behind each other."""
        return self._project(x, 0, 3)

    def key_value(self, x):
        return self._project(x, 1, 3)

    def query(self, x):
        return self._project(x, 0, 1)

    def attend(self, q, k, v, mask=None, causal=False):
        """What the heads gather: q (..., T, W), k and v (..., S, W) -> (..., T, W).

        mask: True where a query may look, to be broadcast to (batch, heads, T, S), the leading dimensions as one."""
        # The attention kernels take one batch dimension.
        split = [t.reshape(-1, *t.shape[-2:]).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v)]
        y = F.scaled_dot_product_attention(*split, attn_mask=mask, is_causal=causal)
        return y.transpose(1, 2).reshape(q.shape)

    def finish(self, x, attended):
        """The block's output for tokens x (..., T, W) and what their heads gathered, of the same shape."""
        x = x + self.attn.out_proj(attended)
        return x + self._feed_forward(self.ln_2(x))

    def _feed_forward(self, x):
        """CLIP's MLP with QuickGELU(h) = h sigmoid(1.702 h) = silu(1.702 h) / 1.702.

        The two factors ride on the matrix products: of the hidden layer, the largest tensor of a block, one copy is
        made and kept for the backward pass where the formula as written makes four."""
        up, down = self.mlp.c_fc, self.mlp.c_proj
        h = torch.addmm(up.bias, x.flatten(0, -2), up.weight.t(), beta=SLOPE, alpha=SLOPE)
        h = F.silu(h, inplace=not h.requires_grad)
        return torch.addmm(down.bias, h, down.weight.t(), alpha=1 / SLOPE).view_as(x)

    def __call__(self, x):
        """All tokens (..., T, W) -> the same."""
        return self.finish(x, self.attend(*self.query_key_value(x).chunk(3, dim=-1)))
