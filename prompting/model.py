"""The shape that most methods have: features of images, features of classes, and their logits."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prompting.class_prompts import readable

if TYPE_CHECKING:
    from typing_extensions import Self

    from prompting.towers import Towers


class PromptedCLIP(nn.Module):
    """A CLIP with something learned around it or, with trainable towers, within it.

    Subclasses define `encode_classes()`, and `encode_images`, `logits` or `forward` where theirs differ. `forward` is
    what the method predicts.

    Attributes:
        clip: the CLIP of trainable towers; those of its parameters that want gradients are trained. Frozen towers are
            no part of this module.
    """

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers
        if towers.trainable:
            self.clip = towers.model
        self._class_features: Tensor | None = None
        self._computed_from: tuple[list[Tensor], list[tuple[int, int]]] = ([], [])

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), or frozen features (B, E) where the method says `frozen_images` -> image features (B, E)."""
        return self.towers.encode_image(images)

    def encode_classes(self) -> Tensor:
        """-> class features (n_cls, E)."""
        raise NotImplementedError

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """(B, E) and (n_cls, E) -> (B, n_cls)."""
        return self.towers.cosine_logits(image_features, class_features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), or frozen features (B, E) as for `encode_images` -> logits (B, n_cls)."""
        return self.logits(self.encode_images(images), self.class_features())

    def class_features(self) -> Tensor:
        """`encode_classes()`; without gradients, in evaluation, it is computed once and kept until it is forgotten or
        a tensor of this module changes in place or gives its place to another one."""
        if self.training or torch.is_grad_enabled():
            return self.encode_classes()
        tensors = [*self.parameters(), *self.buffers()]
        versions = [(id(tensor), tensor._version) for tensor in tensors]
        if self._class_features is None or versions != self._computed_from[1]:
            # The tensors are kept, too: the number of one that is gone may become another one's.
            self._class_features, self._computed_from = self.encode_classes(), (tensors, versions)
        return self._class_features

    def forget_class_features(self) -> None:
        """Compute the class features anew when they are next asked for: something that they depend on has changed."""
        self._class_features, self._computed_from = None, ([], [])

    def train(self, mode: bool = True) -> Self:
        self.forget_class_features()
        return super().train(mode)


class FrozenCLIP(PromptedCLIP):
    """Zero-shot CLIP: classes described by `templates`. Their features are frozen, but for a text tower that is
    trained: that encodes them anew."""

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(towers)
        self.classnames, self.templates = [readable(name) for name in classnames], list(templates)
        self.frozen_text_features = towers.encode_classnames(self.classnames, self.templates).detach()

    def encode_classes(self) -> Tensor:
        if self.towers.text.trained:
            return self.towers.encode_classnames(self.classnames, self.templates)
        return self.frozen_text_features


class Prompt(nn.Module):
    """Learned vectors under the name `ctx`, float32.

    Args:
        values: what they start as, any shape.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.ctx = nn.Parameter(values.detach().float().clone())

    @classmethod
    def random(cls, *shape: int, std: float = 0.02) -> Self:
        """A prompt that starts as `random_vectors`."""
        return cls(random_vectors(*shape, std=std))


class PromptWithNet(Prompt):
    """Learned vectors and, under the name `meta_net`, a network that is learned with them.

    Args:
        values: what the vectors start as, any shape.
        meta_net: the network.
    """

    def __init__(self, values: Tensor, meta_net: nn.Module) -> None:
        super().__init__(values)
        self.meta_net = meta_net


def random_vectors(*shape: int, std: float = 0.02) -> Tensor:
    """Drawn from N(0, std^2): what the prompts of CoOp and its successors start as."""
    return torch.randn(*shape) * std
