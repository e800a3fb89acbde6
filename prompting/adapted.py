"""A CLIP with something learned beside the blocks of its towers."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prompting.block_adapters import AT_INPUT, BlockAdapter
from prompting.class_prompts import Prompts, readable
from prompting.model import PromptedCLIP
from prompting.templates import fill
from prompting.towers import Towers, normalize


class AdaptedCLIP(PromptedCLIP):
    """Whole sentences as prompts, and BlockAdapters beside the blocks of one tower or both. A tower without any is
    frozen.

    Args:
        towers, classnames.
        templates: the sentences of a class; its feature is the mean of theirs, each of length 1, as in zero-shot CLIP.
        text, visual: {layer: BlockAdapter} of each tower. That of AT_INPUT stands in front of the positions in the
            text tower, behind ln_pre in the image tower.
        method: what a message calls the method.
    Raises:
        PromptingError: there are adapters for the image tower, and it is a ResNet.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str],
                 text: Mapping[int, BlockAdapter], visual: Mapping[int, BlockAdapter], method: str) -> None:
        super().__init__(towers)
        names, tower = [readable(name) for name in classnames], towers.text
        self.text_adapter, self.visual_adapter = _by_name(text), _by_name(visual)
        if visual:
            self.image_tower = towers.promptable_image(method, "adapts the image tower")
        if not text:
            self.frozen_text_features = towers.encode_classnames(names, templates)
            return
        self.templates = len(templates)
        self.tokens = tower.tokenize([fill(template, name) for template in templates for name in names])
        # Each token is embedded once, wherever it stands.
        numbers = torch.tensor(sorted(set(self.tokens.flatten().tolist())), device=self.tokens.device)
        self.places = torch.searchsorted(numbers, self.tokens)
        self.words = tower.embed_tokens(numbers)
        self.fixed_prompts = tower.sentences(self.tokens, embedded=self.words[self.places])

    def prompts(self, words: Tensor) -> Prompts:
        """The prompts of the vectors of all different tokens, (tokens, W)."""
        fixed, embedded = self.fixed_prompts, words[self.places]
        x, shared = embedded + self.towers.text.positions(0, embedded.shape[1]), fixed.prefix.shape[1]
        return replace(fixed, prefix=x[:1, :shared], suffix=x[None, :, shared:])

    def encode_images(self, images: Tensor) -> Tensor:
        if not self.visual_adapter:
            return self.towers.encode_image(images)
        return self.image_tower.encode(self.image_tower.embed(images), adapters=_by_layer(self.visual_adapter))

    def encode_classes(self) -> Tensor:
        if not self.text_adapter:
            return self.frozen_text_features
        adapters, prompts = _by_layer(self.text_adapter), self.fixed_prompts
        if (first := adapters.pop(AT_INPUT, None)) is not None:
            added = first.beside(self.words, lambda words: words)
            prompts = prompts if added is None else self.prompts(self.words + added.float())
        features = self.towers.text.encode(prompts, adapters=adapters)[0]
        if self.templates == 1:
            return features
        return normalize(features).view(self.templates, -1, features.shape[-1]).mean(dim=0)


def _by_name(adapters: Mapping[int, BlockAdapter]) -> nn.ModuleDict:
    return nn.ModuleDict({str(layer): adapter for layer, adapter in adapters.items()})


def _by_layer(modules: nn.ModuleDict) -> dict[int, BlockAdapter]:
    found = {}
    for name, adapter in modules.items():
        assert isinstance(adapter, BlockAdapter)
        found[int(name)] = adapter
    return found
