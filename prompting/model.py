"""The shape most methods have: features of images, features of classes, and their logits."""
import torch
from torch import nn

from prompting.text import readable


class PromptedCLIP(nn.Module):
    """A frozen CLIP with something learned around it.

    Subclasses define `encode_classes()`, and `encode_images` or `logits` where theirs differ. Features of classes that
    do not depend on the image are computed once an evaluation; `train()` and `eval()` drop them.
    """

    def __init__(self, towers):
        super().__init__()
        self.towers = towers
        self._class_features = None

    def encode_images(self, images):
        """(B, 3, H, W) -> image features (B, E)."""
        return self.towers.encode_image(images)

    def encode_classes(self):
        """-> class features (n_cls, E)."""
        raise NotImplementedError

    def logits(self, image_features, class_features):
        """-> (B, n_cls)."""
        return self.towers.cosine_logits(image_features, class_features)

    def forward(self, images):
        return self.logits(self.encode_images(images), self.class_features())

    def class_features(self):
        """`encode_classes()`, remembered while evaluating without gradients."""
        if self.training or torch.is_grad_enabled():
            return self.encode_classes()
        if self._class_features is None:
            self._class_features = self.encode_classes()
        return self._class_features

    def train(self, mode=True):
        self._class_features = None
        return super().train(mode)


class FrozenCLIP(PromptedCLIP):
    """Classes described by `templates`, nothing learned: zero-shot CLIP."""

    def __init__(self, towers, classnames, templates):
        super().__init__(towers)
        self.text_features = towers.frozen_text([readable(name) for name in classnames], templates)

    def encode_classes(self):
        return self.text_features


class Prompt(nn.Module):
    """Learned vectors under the name `ctx`, float32.

    Args:
        values: the start, any shape.
    """

    def __init__(self, values):
        super().__init__()
        self.ctx = nn.Parameter(values.detach().float().clone())

    @classmethod
    def random(cls, *shape, std=0.02):
        """A start from `random_vectors`."""
        return cls(random_vectors(*shape, std=std))


def random_vectors(*shape, std=0.02):
    """Drawn from N(0, std^2), the start that CoOp and its successors use."""
    return torch.randn(*shape) * std
