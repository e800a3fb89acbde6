"""Prompts in both towers: learned tokens that are inserted at the input and replaced at later blocks.

Prompts of depth J are (J, n, W). Number 0 is inserted at the input; number j takes its place before block j (blocks are
counted from 0). The blocks after the last prompts keep the outputs of the block before. Text prompts stand at the
positions 1..n. Visual prompts are the last n tokens, inserted before ln_pre. Methods differ in where the prompts come
from: `IndependentCLIP` learns those of both towers; `CoupledCLIP` computes the visual prompts from the text prompts.
"""
from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prompting.class_prompts import ClassPrompts
from prompting.errors import PromptingError
from prompting.image import ImageTower
from prompting.model import Prompt, PromptedCLIP, random_vectors
from prompting.openai import tokenizer
from prompting.text import TextTower
from prompting.towers import Towers


def check_prompts(where: str, tower: TextTower | ImageTower, depth: int, n_ctx: int) -> None:
    """Raise PromptingError unless prompts of `n_ctx` tokens fit into `depth` blocks of the tower; `where` names the
    settings in the message."""
    if not 1 <= depth <= tower.layers or n_ctx < 1:
        raise PromptingError(f"{where}: prompts go into 1 to {tower.layers} blocks of this backbone, with at least 1 "
                             f"token each; asked for are {depth} blocks and {n_ctx} tokens")


def worded_prompts(tower: TextTower, words: str, depth: int, n_ctx: int) -> tuple[Tensor, str]:
    """What text prompts start as: the first `n_ctx` tokens of `words` at the input, random vectors deeper.

    Returns:
        (text prompts (depth, n_ctx, W), the words left over): of "a photo of a" with two tokens, "a photo" is learned
        and "of a" stays in the prompt. With fewer words than tokens all is random and nothing is left over.
    """
    text_prompts, tokens = random_vectors(depth, n_ctx, tower.width), tokenizer.encode(words.replace("_", " "))
    if len(tokens) < n_ctx:
        return text_prompts, ""
    text_prompts[0] = tower.embed_words(words)[:n_ctx]
    return text_prompts, tokenizer.decode(tokens[n_ctx:]).strip()


class DeepPromptedCLIP(PromptedCLIP):
    """A CLIP with prompts in both towers.

    Subclasses define `text_prompts()`, (J, n, W), and `visual_prompts()`, (J', n', W').

    Args:
        towers: prompting.Towers of a ViT.
        classnames: n_cls names.
        n_ctx: number of text prompt tokens.
        between: fixed words between them and the class name.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], n_ctx: int, between: str = "") -> None:
        super().__init__(towers)
        self.image_tower = towers.promptable_image(type(self).__name__)
        self.class_prompts = ClassPrompts(towers.text, classnames, n_ctx, between=between)

    def text_prompts(self) -> Tensor:
        raise NotImplementedError

    def visual_prompts(self) -> Tensor:
        raise NotImplementedError

    def encode_embedded(self, embedded: Tensor, visual_prompts: Tensor | None = None) -> Tensor:
        """Embedded images (B, tokens, W) -> image features (B, E), not normalised.

        visual_prompts: (J, n, W), in place of the learned ones."""
        return self.image_tower.encode(embedded, self.visual_prompts() if visual_prompts is None else visual_prompts)

    def encode_text_prompts(self, text_prompts: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        """-> text features (n_cls or len(classes), E), not normalised.

        text_prompts: (J, n, W), in place of the learned ones; classes: indices of the classes wanted."""
        at_input, *deeper = self.text_prompts() if text_prompts is None else text_prompts
        return self.towers.text.encode(self.class_prompts(at_input, classes), dict(enumerate(deeper, start=1)))[0]

    def encode_images(self, images: Tensor) -> Tensor:
        return self.encode_embedded(self.image_tower.embed(images))

    def encode_classes(self) -> Tensor:
        return self.encode_text_prompts()


class IndependentCLIP(DeepPromptedCLIP):
    """Each tower has prompts of its own, which start as `text` (J, n, W) and `visual` (J', n', W')."""

    def __init__(self, towers: Towers, classnames: Sequence[str], text: Tensor, visual: Tensor,
                 between: str = "") -> None:
        super().__init__(towers, classnames, text.shape[1], between)
        self.prompt_learner = Prompt(text)
        self.vision_prompt_learner = Prompt(visual)

    def text_prompts(self) -> Tensor:
        return self.prompt_learner.ctx

    def visual_prompts(self) -> Tensor:
        return self.vision_prompt_learner.ctx


class CoupledPrompts(Prompt):
    """Text prompts, which start as `text` (J, n, W), and a learned linear function per depth that makes the visual
    prompts out of them. The function at the input has its own start; those of all other depths start alike."""

    def __init__(self, text: Tensor, visual_width: int) -> None:
        super().__init__(text)
        widths = text.shape[-1], visual_width
        at_input, deeper = nn.Linear(*widths), nn.Linear(*widths)
        self.proj = nn.ModuleList([at_input, *(copy.deepcopy(deeper) for _ in text[1:])])

    def visual(self) -> Tensor:
        """The visual prompts (J, n, W')."""
        return torch.stack([layer(ctx) for layer, ctx in zip(self.proj, self.ctx)])


class CoupledCLIP(DeepPromptedCLIP):
    """The visual prompts of each depth are a function of the text prompts of that depth, which start as `text`
    (J, n, W)."""

    def __init__(self, towers: Towers, classnames: Sequence[str], text: Tensor, between: str = "") -> None:
        super().__init__(towers, classnames, text.shape[1], between)
        self.prompt_learner = CoupledPrompts(text, self.image_tower.width)

    def text_prompts(self) -> Tensor:
        return self.prompt_learner.ctx

    def visual_prompts(self) -> Tensor:
        return self.prompt_learner.visual()
