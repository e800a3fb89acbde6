"""Images (+ deep visual prompts) -> image features."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prompting.blocks import Block
from prompting.parallel import Collectives, SingleProcess
from prompting.passes import Passes

if TYPE_CHECKING:
    from clip.model import CLIP


class ImageTower:
    """CLIP's vision transformer; its weights stay as they are.

    Attributes: width W, embed_dim E, layers, resolution (pixels per side), ranks (the processes that share a pass),
        passes (the counter of images).
    """

    width: int
    embed_dim: int
    resolution: int

    def __init__(self, clip_model: CLIP, ranks: Collectives | None = None, passes: Passes | None = None) -> None:
        self.model, self.visual = clip_model, clip_model.visual
        self.ranks, self.passes = ranks or SingleProcess(), passes or Passes()
        self.blocks = [Block(block) for block in self.visual.transformer.resblocks]
        self.layers = len(self.blocks)
        self.width, self.embed_dim = self.visual.proj.shape
        self.resolution = self.visual.input_resolution

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W') -> class token and patch tokens with positions (B, 1 + patches, W), before ln_pre.

        Frozen and prompted passes over the same images share them."""
        x = self.visual.conv1(images.to(self.model.dtype)).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        positions: Tensor = self.visual.positional_embedding
        return torch.cat([first, x], dim=1) + positions.to(x.dtype)

    def encode(self, embedded: Tensor, visual_prompts: Tensor | Sequence[Tensor] = ()) -> Tensor:
        """Run the tower.

        Args:
            embedded: what `embed` gave.
            visual_prompts: those of the layers 0, 1, ..., each (n, W), or (B, n, W) with prompts of each image's own.
                The first are appended to the patch tokens before ln_pre. The others replace the last n tokens before
                their layer. Layers after the last prompts keep the outputs of the layer before.
        Returns:
            (B, E), not normalised.
        """
        def share(rows: slice) -> Tensor:
            return self._encode_share(embedded[rows],
                                      [prompt[rows] if prompt.dim() == 3 else prompt for prompt in visual_prompts])

        self.passes.add(images=len(embedded))
        return self.ranks.divide(len(embedded), share)

    def encode_unprompted(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W') -> frozen features (B, E), not normalised."""
        self.passes.add(images=len(images))
        return self.ranks.divide(len(images), lambda rows: self._encode_share(self.embed(images[rows]), ()))

    def _encode_share(self, embedded: Tensor, visual_prompts: Sequence[Tensor]) -> Tensor:
        """`encode` on this rank."""
        x: Tensor = self.visual.ln_pre(embedded)
        for layer, block in enumerate(self.blocks[:-1]):
            prompt = self._prompt(visual_prompts, layer, x)
            if layer == 0 and prompt is not None:
                # No token before the first prompts has a gradient. Projected separately, they need no backward pass.
                qkv = torch.cat([block.query_key_value(x), block.query_key_value(prompt)], dim=1)
                x = torch.cat([x, prompt], dim=1)
            else:
                x = torch.cat([x, prompt], dim=1) if prompt is not None else x
                qkv = block.query_key_value(x)
            # Where the next layer has prompts of its own, nobody reads this layer's outputs.
            read = x.shape[1] - (visual_prompts[layer + 1].shape[-2] if layer + 1 < len(visual_prompts) else 0)
            q, k, v = qkv.chunk(3, dim=-1)
            x = block.finish(x[:, :read], block.attend(q[:, :read], k, v))
        prompt = self._prompt(visual_prompts, self.layers - 1, x)
        if prompt is not None:
            x = torch.cat([x, prompt], dim=1)
        block, first = self.blocks[-1], x[:, :1]  # only the class token is read
        k, v = block.key_value(x).chunk(2, dim=-1)
        x = block.finish(first, block.attend(block.query(first), k, v))
        features: Tensor = self.visual.ln_post(x[:, 0])
        projection: Tensor = self.visual.proj
        return features.to(projection.dtype) @ projection

    def _prompt(self, visual_prompts: Sequence[Tensor], layer: int, x: Tensor) -> Tensor | None:
        """The prompt tokens of a layer (B, n, W), to be put behind the tokens x (B, T, W); None without any."""
        if layer >= len(visual_prompts):
            return None
        prompt = visual_prompts[layer].to(x.dtype).expand(len(x), -1, -1)
        if layer == 0:
            prompt = self.visual.ln_pre(prompt)
        return prompt
