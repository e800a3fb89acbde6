"""One residual attention block of a CLIP tower, in parts, so that queries and keys may come from different tokens.

Published prompt-learning code runs the whole block over every token. Here the same weights have more uses: the prompts
of many classes of different lengths behind one shared prefix, layers with outputs that nobody reads, and a last block
that computes only the token which is read out.

For this a block reads the weights of its attention and of its two large linear layers. It does so only where these are
what CLIP has (`is_plain`; parametrised weights are, too). A linear layer of another kind is called. A block that is
another one, or whose attention or MLP is, is `whole`: it is called with all tokens of a sequence, as CLIP calls it.
"""
from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prompting.errors import PromptingError

if TYPE_CHECKING:
    from clip.model import CLIP, ResidualAttentionBlock

ACTIVATION = "QuickGELU"  # what the blocks compute
SLOPE = 1.702  # of CLIP's QuickGELU


def differentiable_attention() -> AbstractContextManager[None]:
    """Context in which the backward pass of attention can itself be differentiated.

    That of the fused kernels cannot. Second-order meta-gradients need this context around the forward pass."""
    return sdpa_kernel(SDPBackend.MATH)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module computes what `kind` does, from its weights and nothing else: neither its class nor
    the module has a forward of its own, and there are no hooks."""
    return (isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module)
            and not has_hooks(module))


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


class Block:
    """Adapter of OpenAI's `ResidualAttentionBlock`; tokens are batch-first, (..., T, W).

    Calling a block is `finish(x, attend(query(x), key, value))`, with key and value from `key_value(x)`. None of these
    can be asked of a block that is whole; it is called with `run_whole`.

    Args:
        causal: whether the tower is causal; a block with another mask than the tower's is whole, too. None: whatever it
            has is the tower's.
    Attributes:
        whole: whether the block has a part that must see whole sequences.
    """

    def __init__(self, block: ResidualAttentionBlock, causal: bool | None = None) -> None:
        from clip.model import QuickGELU, ResidualAttentionBlock  # slow to import

        self.module = block
        self.whole = not (is_plain(block, ResidualAttentionBlock) and "attention" not in vars(block)
                          and type(block).attention is ResidualAttentionBlock.attention
                          and (causal is None or (block.attn_mask is not None) == causal)
                          and _is_plain_attention(block.attn)
                          and is_plain(block.mlp, nn.Sequential)
                          and [name for name, _ in block.mlp.named_children()] == ["c_fc", "gelu", "c_proj"])
        if self.whole:
            return
        self.ln_1, self.ln_2, self.attn, self.mlp = block.ln_1, block.ln_2, block.attn, block.mlp
        self.heads: int = block.attn.num_heads
        self._plain_mlp = (is_plain(self.mlp.gelu, QuickGELU)
                           and all(is_plain(layer, nn.Linear) and layer.bias is not None
                                   for layer in (self.mlp.c_fc, self.mlp.c_proj)))

    def run_whole(self, x: Tensor) -> Tensor:
        """The block as CLIP calls it: whole sequences (B, T, W) -> (B, T, W)."""
        tokens: Tensor = self.module(x.transpose(0, 1))
        return tokens.transpose(0, 1)

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

        mask: True where a query may attend, or what is added to the scores, of the type of q. It is broadcast to
        (batch, heads, T, S), the leading dimensions as one."""
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

        Where its layers are plain, the two factors are part of the matrix products. So the hidden layer, the largest
        tensor of a block, is kept once for the backward pass; the formula as written keeps it four times."""
        if not self._plain_mlp:
            called: Tensor = self.mlp(x)
            return called
        up, down = self.mlp.c_fc, self.mlp.c_proj
        h = torch.addmm(up.bias, x.flatten(0, -2), up.weight.t(), beta=SLOPE, alpha=SLOPE)
        h = F.silu(h, inplace=not h.requires_grad)
        return torch.addmm(down.bias, h, down.weight.t(), alpha=1 / SLOPE).view_as(x)

    def __call__(self, x: Tensor) -> Tensor:
        """All tokens (..., T, W) -> (..., T, W)."""
        q, k, v = self.query_key_value(x).chunk(3, dim=-1)
        return self.finish(x, self.attend(q, k, v))


def _is_plain_attention(attn: nn.Module) -> bool:
    """Whether a module is the attention that every CLIP block has."""
    return (is_plain(attn, nn.MultiheadAttention) and attn.in_proj_weight is not None and attn.in_proj_bias is not None
            and attn.bias_k is None and not attn.add_zero_attn and not attn.dropout and not attn.batch_first)


class Blocks:
    """The blocks of a tower's transformer.

    Args:
        model: the CLIP.
        text: whether they are those of the text tower, which is causal, or of the image tower.
        changing: whether its modules may be replaced at any time. Then each pass looks at them anew.
    """

    def __init__(self, model: CLIP, text: bool, changing: bool) -> None:
        self.model, self.text, self.changing = model, text, changing
        self.above: Any = model if text else model.visual  # the module that would call the transformer
        self.transformer: Any = self.above.transformer
        self._kept = self._look()

    def now(self) -> list[Block]:
        """The blocks as they are. Raises PromptingError where a forward, a hook or another module would be passed over:
        of the modules that hold the blocks none is called."""
        return self._look() if self.changing else self._kept

    def _look(self) -> list[Block]:
        from clip.model import Transformer, VisionTransformer  # slow to import

        above: Any = self.model if self.text else self.model.visual
        if above is not self.above or above.transformer is not self.transformer:
            name = "transformer" if self.text else "visual or visual.transformer"
            raise PromptingError(f"the {name} of the CLIP was replaced, and the new module would never be called; "
                                 "replace its blocks, transformer.resblocks[i], or the modules in them")
        for module, kind in ((above, nn.Module if self.text else VisionTransformer), (self.transformer, Transformer),
                             (self.transformer.resblocks, nn.Module)):
            if has_hooks(module) or kind is not nn.Module and not is_plain(module, kind):
                raise PromptingError(f"a {type(module).__name__} of the CLIP has hooks or a forward of its own, which "
                                     "would never be called; put them on the blocks, transformer.resblocks[i], or on "
                                     "the modules in them")
        return [Block(block, causal=self.text) for block in self.transformer.resblocks]


class Tower:
    """What both towers have: their blocks, in a `stack`, as they are at the moment, and how many there are."""

    stack: Blocks
    width: int

    @property
    def blocks(self) -> list[Block]:
        return self.stack.now()

    @property
    def layers(self) -> int:
        return len(self.blocks)
