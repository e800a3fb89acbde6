"""Asymmetric contrast: each prompted modality against the other's frozen features (MetaPrompt, Zhao et al., arXiv
2212.04196, section III-B)."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prompting.deep import IndependentCLIP, check_prompts
from prompting.model import random_vectors
from prompting.towers import Towers


class AsymmetricCLIP(IndependentCLIP):
    """Both towers with deep prompts, and the frozen features of both modalities to compare with.

    Args:
        towers: prompting.Towers of a ViT.
        classnames: n_cls names.
        n_ctx, n_pro: prompt tokens of the text and the image tower.
        layers: how many layers, from the first, have prompts.
        frozen_names: the class names as they stand in the frozen prompts; templates: those prompts.
        where: the name of these settings, for messages.
    Raises:
        PromptingError: the prompts do not fit into a tower.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], n_ctx: int, n_pro: int, layers: int,
                 frozen_names: Sequence[str], templates: Sequence[str], where: str) -> None:
        image, text = towers.promptable_image("AsymmetricCLIP"), towers.text
        check_prompts(f"{where}.LAYERS and N_CTX", text, layers, n_ctx)
        check_prompts(f"{where}.LAYERS and N_PRO", image, layers, n_pro)
        super().__init__(towers, classnames, random_vectors(layers, n_ctx, text.width),
                         random_vectors(layers, n_pro, image.width))
        self.frozen_text_features = towers.encode_classnames(frozen_names, templates)

    def forward(self, images: Tensor, frozen: Tensor | None = None) -> Tensor:
        """The mean of both contrasts: images (B, 3, H, W) -> (B, n_cls).

        frozen: the frozen features of the images (B, E); they are computed where they are not given."""
        if frozen is None:
            prompted, frozen = self.encode_prompted_and_frozen(images)
        else:
            prompted = self.encode_images(images)
        return (self.image_logits(prompted) + self.text_logits(frozen, self.class_features())) / 2

    def encode_prompted_and_frozen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> prompted and frozen image features, (B, E) each, from one embedding of the images."""
        embedded = self.image_tower.embed(images)
        return self.encode_embedded(embedded), self.image_tower.encode(embedded)

    def image_logits(self, prompted_images: Tensor) -> Tensor:
        """Prompted image features (B, E) against frozen text features -> (B, n_cls)."""
        return self.towers.cosine_logits(prompted_images, self.frozen_text_features)

    def text_logits(self, frozen_images: Tensor, prompted_text: Tensor) -> Tensor:
        """Frozen image features (B, E) against prompted text features (C, E) -> (B, C)."""
        return self.towers.cosine_logits(frozen_images, prompted_text)
