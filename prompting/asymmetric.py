"""Asymmetric contrast: each prompted modality against the other's frozen features (MetaPrompt, Zhao et al., arXiv
2212.04196, section III-B)."""
from prompting.deep import IndependentCLIP, check_prompts
from prompting.model import random_vectors


class AsymmetricCLIP(IndependentCLIP):
    """Both towers with deep prompts, and the frozen features of both modalities to compare with.

    Args:
        towers: prompting.Towers of a ViT.
        classnames: n_cls names.
        n_ctx, n_pro: prompt tokens of the text and the image tower.
        layers: how many layers, from the first, have prompts.
        frozen_names: the names as they stand in the frozen prompts; templates: those prompts.
        where: the name of these settings, for messages.
    Raises:
        PromptingError: the prompts do not fit into a tower.
    """

    def __init__(self, towers, classnames, n_ctx, n_pro, layers, frozen_names, templates, where):
        image, text = towers.image, towers.text
        for tower, number, name in ((text, n_ctx, "N_CTX"), (image, n_pro, "N_PRO")):
            check_prompts(f"{where}.LAYERS and {name}", tower, layers, number)
        super().__init__(towers, classnames, random_vectors(layers, n_ctx, text.width),
                         random_vectors(layers, n_pro, image.width))
        self.frozen_text = towers.frozen_text(frozen_names, templates)

    def encode_images(self, images):
        """-> (prompted, frozen) image features from one embedding of the images."""
        embedded = self.towers.image.embed(images)
        return self.image_features(embedded), self.towers.image.encode(embedded)

    def image_logits(self, prompted_images):
        """Prompted images against frozen text."""
        return self.towers.cosine_logits(prompted_images, self.frozen_text)

    def text_logits(self, frozen_images, prompted_text):
        """Frozen images against prompted text."""
        return self.towers.cosine_logits(frozen_images, prompted_text)

    def logits(self, image_features, class_features):
        prompted, frozen = image_features
        return (self.image_logits(prompted) + self.text_logits(frozen, class_features)) / 2
