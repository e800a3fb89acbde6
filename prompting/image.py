"""Images (+ deep visual prompts) -> image features."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prompting.blocks import Block, Blocks, Tower
from prompting.errors import PromptingError
from prompting.parallel import Collectives, SingleProcess, divide
from prompting.passes import Passes

if TYPE_CHECKING:
    from clip.model import CLIP


class ImageTower(Tower):
    """CLIP's vision transformer.

    Attributes: width W, embed_dim E, layers, resolution (pixels per side), ranks (the processes that share a pass),
        passes (the counter of images), trainable (whether its modules and weights may change and want gradients).
    """

    width: int
    embed_dim: int
    resolution: int

    def __init__(self, clip_model: CLIP, ranks: Collectives | None = None, passes: Passes | None = None,
                 trainable: bool = False) -> None:
        self.visual, self.dtype, self.trainable = clip_model.visual, clip_model.visual.proj.dtype, trainable
        self.ranks, self.passes = ranks or SingleProcess(), passes or Passes()
        self.stack = Blocks(clip_model, text=False, changing=trainable)
        self.width, self.embed_dim = self.visual.proj.shape
        self.resolution = self.visual.input_resolution

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W') -> class token and patch tokens with positions (B, 1 + patches, W), before ln_pre.

        Prompted passes over the same images share them. Raises PromptingError for frozen features (B, E)."""
        require_pictures(images)
        x = self.visual.conv1(images.to(self.dtype)).flatten(2).transpose(1, 2)
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
        return self._divide(embedded, visual_prompts, self._encode_share)

    def encode_tokens(self, embedded: Tensor, visual_prompts: Tensor | Sequence[Tensor] = ()) -> Tensor:
        """`encode` for all tokens of the images: (B, 1 + patches, E), the class token first, not normalised. Each is
        read out as the class token is, by the last norm and the projection."""
        return self._divide(embedded, visual_prompts, self._encode_tokens_share)

    def encode_unprompted(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W') -> frozen features (B, E), not normalised."""
        self.passes.add(images=len(images))
        return self._over_ranks(len(images), lambda rows: self._encode_share(self.embed(images[rows]), ()))

    def _divide(self, embedded: Tensor, visual_prompts: Tensor | Sequence[Tensor],
                encode: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> Tensor:
        """`encode(embedded, visual_prompts)`, of which each rank computes its share of the images."""
        def share(rows: slice) -> Tensor:
            return encode(embedded[rows], [prompt[rows] if prompt.dim() == 3 else prompt for prompt in visual_prompts])

        self.passes.add(images=len(embedded))
        return self._over_ranks(len(embedded), share)

    def _over_ranks(self, images: int, share: Callable[[slice], Tensor]) -> Tensor:
        return divide(self.ranks, images, share, draws=self.visual.proj.device if self.trainable else None)

    def _encode_share(self, embedded: Tensor, visual_prompts: Sequence[Tensor]) -> Tensor:
        """`encode` on this rank. Of the last block only the class token is computed."""
        blocks = self.blocks
        if any(block.whole for block in blocks):
            return self._project(self._run_whole(blocks, embedded, visual_prompts)[:, 0])
        x = self._run_to_last(blocks, embedded, visual_prompts)
        block, first = blocks[-1], x[:, :1]
        k, v = block.key_value(x).chunk(2, dim=-1)
        return self._project(block.finish(first, block.attend(block.query(first), k, v))[:, 0])

    def _encode_tokens_share(self, embedded: Tensor, visual_prompts: Sequence[Tensor]) -> Tensor:
        """`encode_tokens` on this rank."""
        blocks = self.blocks
        if any(block.whole for block in blocks):
            x = self._run_whole(blocks, embedded, visual_prompts)
        else:
            x = blocks[-1](self._run_to_last(blocks, embedded, visual_prompts))
        return self._project(x[:, :embedded.shape[1]])  # the prompts stand behind

    def _project(self, tokens: Tensor) -> Tensor:
        """The final norm and the projection: (..., W) -> (..., E)."""
        features: Tensor = self.visual.ln_post(tokens)
        projection: Tensor = self.visual.proj
        return features.to(projection.dtype) @ projection

    def _run_to_last(self, blocks: list[Block], embedded: Tensor, visual_prompts: Sequence[Tensor]) -> Tensor:
        """All blocks but the last -> the tokens at the input of the last, its prompts included."""
        x: Tensor = self.visual.ln_pre(embedded)
        for layer, block in enumerate(blocks[:-1]):
            prompt = self._prompt(visual_prompts, layer, x)
            if layer == 0 and prompt is not None:
                # No token before the first prompts has a gradient. Projected separately, they need no backward pass.
                qkv = torch.cat([block.query_key_value(x), block.query_key_value(prompt)], dim=1)
                x = torch.cat([x, prompt], dim=1)
            else:
                x = torch.cat([x, prompt], dim=1) if prompt is not None else x
                qkv = block.query_key_value(x)
            # Where the next layer has prompts of its own, nobody reads this layer's outputs.
            read = x.shape[1] - _prompts_of(visual_prompts, layer + 1)
            q, k, v = qkv.chunk(3, dim=-1)
            x = block.finish(x[:, :read], block.attend(q[:, :read], k, v))
        prompt = self._prompt(visual_prompts, len(blocks) - 1, x)
        return x if prompt is None else torch.cat([x, prompt], dim=1)

    def _run_whole(self, blocks: list[Block], embedded: Tensor, visual_prompts: Sequence[Tensor]) -> Tensor:
        """All blocks, each called with all tokens -> the tokens behind the last."""
        x: Tensor = self.visual.ln_pre(embedded)
        for layer, block in enumerate(blocks):
            prompt = self._prompt(visual_prompts, layer, x)
            x = block.run_whole(x if prompt is None else torch.cat([x, prompt], dim=1))
            x = x[:, :x.shape[1] - _prompts_of(visual_prompts, layer + 1)]
        return x

    def _prompt(self, visual_prompts: Sequence[Tensor], layer: int, x: Tensor) -> Tensor | None:
        """The prompt tokens of a layer (B, n, W), to be put behind the tokens x (B, T, W); None without any."""
        if layer >= len(visual_prompts):
            return None
        prompt = visual_prompts[layer].to(x.dtype).expand(len(x), -1, -1)
        if layer == 0:
            prompt = self.visual.ln_pre(prompt)
        return prompt


def require_pictures(images: Tensor) -> None:
    """Raise PromptingError for frozen features where pictures are needed."""
    if images.dim() == 2:
        raise PromptingError(f"pictures (B, 3, H, W) are needed, and frozen features {tuple(images.shape)} were given, "
                             "which a method gets that says `frozen_images` and may only hand to towers.encode_image; "
                             "do so, or leave the statement out")


def _prompts_of(visual_prompts: Sequence[Tensor], layer: int) -> int:
    """How many prompt tokens a layer has of its own."""
    return visual_prompts[layer].shape[-2] if layer < len(visual_prompts) else 0
