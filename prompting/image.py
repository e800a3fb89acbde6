"""Images (+ deep visual prompts) -> image features."""
import torch

from prompting.blocks import Block


class ImageTower:
    """CLIP's vision transformer; its weights stay as they are.

    Attributes: width W, embed_dim E, layers, resolution (pixels a side).
    """

    def __init__(self, clip_model):
        self.model, self.visual = clip_model, clip_model.visual
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
            prompts: visual prompts (n, W) of the layers 0, 1, ...: the first are appended to the patches before ln_pre,
                the others replace the last n tokens before their layer. Later layers carry the outputs on.
        Returns:
            (B, E), not normalised.
        """
        x = embedded
        if len(prompts):
            x = torch.cat([x, self._batched(prompts[0], x)], dim=1)
        x = self.visual.ln_pre(x)
        for layer, block in enumerate(self.blocks):
            if 1 <= layer < len(prompts):
                x = torch.cat([x[:, :-prompts[layer].shape[-2]], self._batched(prompts[layer], x)], dim=1)
            if layer == self.layers - 1:  # only the class token is read
                x = block.finish(x[:, :1], block.query(x[:, :1]), *block.key_value(x))
            else:
                x = block(x)
        return self.visual.ln_post(x[:, 0]).to(self.visual.proj.dtype) @ self.visual.proj

    @staticmethod
    def _batched(prompt, x):
        return prompt.to(x.dtype).expand(len(x), -1, -1)
