"""Prompts in both towers: learned tokens that join the sequence at the input and are replaced at later blocks.

Prompts of depth J are (J, n, W): number 0 joins at the input, number j takes its place before block j (blocks counted
from 0); the blocks after that carry the last outputs on. Text prompts are the positions 1..n, visual ones the last n
tokens, put in before ln_pre. Methods differ in where the prompts come from: `IndependentCLIP` learns both towers', in
`CoupledCLIP` the visual ones follow from the text prompts.
"""
import copy

import torch
from torch import nn

from prompting.errors import PromptingError
from prompting.model import Prompt, PromptedCLIP, random_vectors
from prompting.openai import tokenizer
from prompting.text import ClassPrompts


def check_prompts(where, tower, depth, n_ctx):
    """Raise PromptingError unless prompts of `n_ctx` tokens fit into `depth` blocks of the tower; `where` names the
    settings in the message."""
    if not 1 <= depth <= tower.layers or n_ctx < 1:
        raise PromptingError(f"{where}: prompts go into 1 to {tower.layers} blocks of this backbone, with at least 1 "
                             f"token each; asked for are {depth} blocks and {n_ctx} tokens")


def worded_prompts(tower, words, depth, n_ctx):
    """The start of text prompts: the first `n_ctx` tokens of `words` at the input, random deeper.

    Returns:
        (prompts (depth, n_ctx, W), the words left over): of "a photo of a" with two tokens "a photo" is learned and
        "of a" stays in the prompt. All is random and nothing left over when there are fewer words than tokens.
    """
    prompts, tokens = random_vectors(depth, n_ctx, tower.width), tokenizer.encode(words.replace("_", " "))
    if len(tokens) < n_ctx:
        return prompts, ""
    prompts[0] = tower.embed_words(words)[:n_ctx]
    return prompts, tokenizer.decode(tokens[n_ctx:]).strip()


class DeepPromptedCLIP(PromptedCLIP):
    """A CLIP both of whose towers read prompts.

    Subclasses define `text_prompts()`, (J, n, W), and `visual_prompts()`, (J', n', W').

    Args:
        towers: prompting.Towers of a ViT.
        classnames: n_cls names.
        n_ctx: number of text prompt tokens.
        between: fixed words between them and the class name.
    """

    def __init__(self, towers, classnames, n_ctx, between=""):
        super().__init__(towers)
        self.prompts = ClassPrompts(towers.text, classnames, n_ctx, between=between)

    def image_features(self, embedded, prompts=None):
        """Embedded images (B, tokens, W) -> (B, E), not normalised; `prompts` (J, n, W) replace the learned ones."""
        return self.towers.image.encode(embedded, self.visual_prompts() if prompts is None else prompts)

    def text_features(self, prompts=None, classes=None):
        """-> (n_cls or len(classes), E), not normalised; `prompts` (J, n, W) replace the learned ones."""
        prompts = self.text_prompts() if prompts is None else prompts
        deep = {layer: prompts[layer] for layer in range(1, len(prompts))}
        return self.towers.text.encode(self.prompts(prompts[0], classes), deep)[0]

    def encode_images(self, images):
        return self.image_features(self.towers.image.embed(images))

    def encode_classes(self):
        return self.text_features()


class IndependentCLIP(DeepPromptedCLIP):
    """Each tower has prompts of its own: text (J, n, W) and visual (J', n', W'), their starts."""

    def __init__(self, towers, classnames, text, visual, between=""):
        super().__init__(towers, classnames, text.shape[1], between)
        self.prompt_learner = Prompt(text)
        self.vision_prompt_learner = Prompt(visual)

    def text_prompts(self):
        return self.prompt_learner.ctx

    def visual_prompts(self):
        return self.vision_prompt_learner.ctx


class CoupledCLIP(DeepPromptedCLIP):
    """The visual prompts of each depth are a learned linear function of the text prompts of that depth, which start as
    `text` (J, n, W). The functions of all depths but the input's start as the same one."""

    def __init__(self, towers, classnames, text, between=""):
        super().__init__(towers, classnames, text.shape[1], between)
        self.prompt_learner = Prompt(text)
        widths = towers.text.width, towers.image.width
        at_input, deeper = nn.Linear(*widths), nn.Linear(*widths)
        self.prompt_learner.proj = nn.ModuleList([at_input, *(copy.deepcopy(deeper) for _ in text[1:])])

    def text_prompts(self):
        return self.prompt_learner.ctx

    def visual_prompts(self):
        projected = zip(self.prompt_learner.proj, self.prompt_learner.ctx)
        return torch.stack([layer(prompt) for layer, prompt in projected])
