"""Images (+ deep visual prompts) -> image features."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prompting.block_adapters import Adapters, adapted, at_input, draw
from prompting.blocks import Block, Blocks, Tower
from prompting.errors import PromptingError
from prompting.indices import index_on
from prompting.parallel import Collectives, SingleProcess, divide
from prompting.passes import Passes

if TYPE_CHECKING:
    from clip.model import CLIP


Prompts = Mapping[int, Tensor]  # {layer: (n, W), or (B, n, W)}
VisualPrompts = Tensor | Sequence[Tensor] | Prompts
Places = Callable[[Tensor], Any]  # tokens in front of the last block (B, T, W) -> index of those that are read out


class ImageTower(Tower):
    """CLIP's vision transformer.

    Attributes: width W, embed_dim E, layers, resolution (pixels per side), ranks (the processes that share a pass),
        passes (the counter of images), trainable (whether its modules and weights may change and want gradients).
    """

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

    def encode(self, embedded: Tensor, visual_prompts: VisualPrompts = (), adapters: Adapters | None = None) -> Tensor:
        """Run the tower.

        Args:
            embedded: what `embed` gave.
            visual_prompts: those of the layers 0, 1, ..., or {layer: those of some}, each (n, W), or (B, n, W) with
                prompts of each image's own. The first are appended to the patch tokens, at layer 0 before ln_pre. The
                others replace the last n tokens before their layer. Layers in between, and those after the last
                prompts, keep the outputs of the layer before.
            adapters: {layer: BlockAdapter} of what is learned beside the blocks; that of AT_INPUT stands behind ln_pre.
        Returns:
            (B, E), not normalised.
        Raises:
            PromptingError: the tower has blocks that can only be called as a whole, which takes no adapters.
        """
        return self._divide(embedded, visual_prompts, adapters, _first, lambda tokens: self.project(tokens[:, 0]))

    def encode_tokens(self, embedded: Tensor, visual_prompts: VisualPrompts = ()) -> Tensor:
        """`encode` for all tokens of the images: (B, 1 + patches, E), the class token first, not normalised. Each is
        read out as the class token is, by the last norm and the projection."""
        own = embedded.shape[1]  # the prompts stand behind
        return self._divide(embedded, visual_prompts, None, lambda x: slice(0, own), self.project)

    def encode_with_prompts(self, embedded: Tensor, visual_prompts: VisualPrompts) -> Tensor:
        """`encode` for the class token and the n prompts of the last layer that has some: (B, 1 + n, W), the class
        token first, behind the last norm and not projected. Here those of layer 0, too, come in behind ln_pre."""
        prompts = by_layer(visual_prompts)
        n = prompts[max(prompts)].shape[-2]
        return self._divide(embedded, prompts, None,
                            lambda x: index_on((0, *range(x.shape[1] - n, x.shape[1])), x.device),
                            self.visual.ln_post, before_norm=False)

    def encode_unprompted(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W') -> frozen features (B, E), not normalised."""
        self.passes.add(images=len(images))
        return self._over_ranks(len(images), lambda rows: self.project(
            self._run(self.embed(images[rows]), {}, None, _first)[:, 0]))

    def _divide(self, embedded: Tensor, visual_prompts: VisualPrompts, adapters: Adapters | None, places: Places,
                read: Callable[[Tensor], Tensor], before_norm: bool = True) -> Tensor:
        """`read` of the tokens at some places behind the last block. Each rank computes its share of the images.
        before_norm: whether the prompts of layer 0 come in before ln_pre."""
        prompts = by_layer(visual_prompts)

        def share(rows: slice) -> Tensor:
            own = {layer: prompt[rows] if prompt.dim() == 3 else prompt for layer, prompt in prompts.items()}
            if before_norm and 0 in own:
                images = len(embedded[rows])
                own[0] = self.visual.ln_pre(own[0].to(embedded.dtype).expand(images, -1, -1))
            return read(self._run(embedded[rows], own, adapters, places))

        self.passes.add(images=len(embedded))
        return self._over_ranks(len(embedded), share, draw(adapters))

    def _over_ranks(self, images: int, share: Callable[[slice], Tensor], draws: bool = False) -> Tensor:
        return divide(self.ranks, images, share, draws=self.visual.proj.device if self.trainable or draws else None)

    def project(self, tokens: Tensor) -> Tensor:
        """The final norm and the projection: (..., W) -> (..., E)."""
        features: Tensor = self.visual.ln_post(tokens)
        projection: Tensor = self.visual.proj
        return features.to(projection.dtype) @ projection

    def _run(self, embedded: Tensor, prompts: Prompts, adapters: Adapters | None, places: Places) -> Tensor:
        """All blocks on this rank -> the tokens at `places` behind the last, of which only these are computed."""
        blocks = adapted(self.blocks, adapters)
        x: Tensor = at_input(self.visual.ln_pre(embedded), adapters)
        if any(block.whole for block in blocks):
            x = self._run_whole(blocks, x, prompts)
            read: Tensor = x[:, places(x)]
            return read
        x = self._run_to_last(blocks, x, prompts)
        block, wanted = blocks[-1], x[:, places(x)]
        k, v = block.key_value(x).chunk(2, dim=-1)
        return block.finish(wanted, block.attend(block.query(wanted), k, v))

    def _run_to_last(self, blocks: list[Block], x: Tensor, prompts: Prompts) -> Tensor:
        """All blocks but the last -> the tokens at the input of the last, its prompts included."""
        for layer, block in enumerate(blocks[:-1]):
            before, prompt = x, self._prompt(prompts, layer, x)
            if prompt is not None:
                x = torch.cat([before, prompt], dim=1)
            if layer == 0 and prompt is not None:
                # No token before the first prompts has a gradient. Projected separately, they need no backward pass.
                qkv = torch.cat([block.query_key_value(before), block.query_key_value(prompt)], dim=1)
            else:
                qkv = block.query_key_value(x)
            # Where the next layer has prompts of its own, nobody reads this layer's outputs.
            read = x.shape[1] - _replaced(prompts, layer + 1)
            q, k, v = qkv.chunk(3, dim=-1)
            tokens = before if before.shape[1] == read else x[:, :read]
            x = block.finish(tokens, block.attend(q[:, :read], k, v))
        prompt = self._prompt(prompts, len(blocks) - 1, x)
        return x if prompt is None else torch.cat([x, prompt], dim=1)

    def _run_whole(self, blocks: list[Block], x: Tensor, prompts: Prompts) -> Tensor:
        """All blocks, each called with all tokens -> the tokens behind the last."""
        for layer, block in enumerate(blocks):
            prompt = self._prompt(prompts, layer, x)
            x = block.run_whole(x if prompt is None else torch.cat([x, prompt], dim=1))
            x = x[:, :x.shape[1] - _replaced(prompts, layer + 1)]
        return x

    def _prompt(self, prompts: Prompts, layer: int, x: Tensor) -> Tensor | None:
        """The prompt tokens of a layer (B, n, W), to be put behind the tokens x (B, T, W); None without any."""
        if layer not in prompts:
            return None
        return prompts[layer].to(x.dtype).expand(len(x), -1, -1)


def by_layer(visual_prompts: VisualPrompts) -> Prompts:
    """{layer: prompts}, also of those of the layers 0, 1, ... in their order."""
    if isinstance(visual_prompts, Mapping):
        return visual_prompts
    return dict(enumerate(visual_prompts))


def _first(x: Tensor) -> slice:
    return slice(0, 1)


def require_pictures(images: Tensor) -> None:
    """Raise PromptingError for frozen features where pictures are needed."""
    if images.dim() == 2:
        raise PromptingError(f"pictures (B, 3, H, W) are needed, and frozen features {tuple(images.shape)} were given, "
                             "which a method gets that says `frozen_images` and may only hand to towers.encode_image; "
                             "do so, or leave the statement out")


def _replaced(prompts: Prompts, layer: int) -> int:
    """How many tokens the prompts of a layer take the place of: none where there were none before."""
    return prompts[layer].shape[-2] if layer in prompts and layer > min(prompts) else 0
