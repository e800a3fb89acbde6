"""Images (+ deep visual prompts) -> image features."""
import torch

from prompting.blocks import Block
from prompting.passes import Passes
from prompting.ranks import Ranks


class ImageTower:
    """CLIP's vision transformer; its weights stay as they are.

    Attributes: width W, embed_dim E, layers, resolution (pixels a side), ranks (the processes that share a pass),
        passes (the counter of images).
    """

    def __init__(self, clip_model, ranks=None, passes=None):
        self.model, self.visual = clip_model, clip_model.visual
        self.ranks, self.passes = ranks or Ranks(), passes or Passes()
        self.blocks = [Block(block) for block in self.visual.transformer.resblocks]
        self.layers = len(self.blocks)
        self.width, self.embed_dim = self.visual.proj.shape
        self.resolution = self.visual.input_resolution

    def embed(self, images):
        """(B, 3, H, W') -> class and patch tokens with positions (B, 1 + patches, W), before the first norm.

        Frozen and prompted passes over the same images share it."""
        x = self.visual.conv1(images.to(self.model.dtype)).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([first, x], dim=1) + self.visual.positional_embedding.to(x.dtype)

    def encode(self, embedded, prompts=()):
        """Run the tower.

        Args:
            embedded: what `embed` gave.
            prompts: visual prompts of the layers 0, 1, ..., (n, W) or each image's own (B, n, W): the first are
                appended to the patches before ln_pre, the others replace the last n tokens before their layer. Later
                layers carry the outputs on.
        Returns:
            (B, E), not normalised.
        """
        def part(rows):
            return self._encode_share(embedded[rows],
                                      [prompt[rows] if prompt.dim() == 3 else prompt for prompt in prompts])

        self.passes.add(images=len(embedded))
        return self.ranks.divide(len(embedded), part)

    def encode_plain(self, images):
        """Images (B, 3, H, W') -> frozen features (B, E), not normalised."""
        self.passes.add(images=len(images))
        return self.ranks.divide(len(images), lambda rows: self._encode_share(self.embed(images[rows]), ()))

    def _encode_share(self, embedded, prompts):
        """What `encode` gives, on this rank."""
        x = self.visual.ln_pre(embedded)
        for layer, block in enumerate(self.blocks[:-1]):
            prompt = self._prompt(prompts, layer, x)
            if layer == 0 and len(prompts):
                # In front of the first prompt nothing has a gradient; projected apart, it needs no backward pass.
                qkv = torch.cat([block.query_key_value(x), block.query_key_value(prompt)], dim=1)
                x = torch.cat([x, prompt], dim=1)
            else:
                x = torch.cat([x, prompt], dim=1) if layer < len(prompts) else x
                qkv = block.query_key_value(x)
            # Where the next layer has prompts of its own, nobody reads this layer's outputs.
            read = x.shape[1] - (prompts[layer + 1].shape[-2] if layer + 1 < len(prompts) else 0)
            q, k, v = qkv.chunk(3, dim=-1)
            x = block.finish(x[:, :read], block.attend(q[:, :read], k, v))
        if self.layers <= len(prompts):
            x = torch.cat([x, self._prompt(prompts, self.layers - 1, x)], dim=1)
        block, first = self.blocks[-1], x[:, :1]  # only the class token is read
        x = block.finish(first, block.attend(block.query(first), *block.key_value(x).chunk(2, dim=-1)))
        return self.visual.ln_post(x[:, 0]).to(self.visual.proj.dtype) @ self.visual.proj

    def _prompt(self, prompts, layer, x):
        """The prompt tokens of a layer (B, n, W) as they stand next to the tokens x (B, T, W); None without any."""
        if layer >= len(prompts):
            return None
        prompt = prompts[layer].to(x.dtype).expand(len(x), -1, -1)
        return self.visual.ln_pre(prompt) if layer == 0 else prompt
