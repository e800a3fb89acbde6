"""MMRL: Guo and Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", arXiv 2503.08497.

Learned: representation tokens R that both towers share, a linear layer for each listed block of each tower, and a
projection of the image tower's representation feature. Linear_j(R) comes in behind the first token, in front of the
first of the listed blocks, and takes the place of its own outputs in front of the later ones; blocks after the last one
carry the tokens on. They have no positions, and enter the image tower behind ln_pre.

With v the image feature at the class token, r the representation feature (the mean over the tokens behind ln_post, by
the learned projection), t the text feature, v0 and t0 those of the frozen CLIP, all of length 1, s = LOGIT_SCALE:

    loss = ALPHA CE(s v t) + (1 - ALPHA) CE(s r t) + REG_WEIGHT (1 - mean v v0) + REG_WEIGHT (1 - mean t t0)

Trained classes are scored by ALPHA s v t + (1 - ALPHA) s r t, in whichever domain of their dataset, other classes by
s v t alone. So is another dataset, also one of the same classes (ImageNetV2 after ImageNet), and so are all classes of
a dataset after a training on its base classes: the rules of the authors' code for base-to-new, few-shot and
cross-dataset runs. As there, s is a constant and not CLIP's own, and the two cross-entropies are taken apart.
"""
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.class_prompts import readable
from prompting.consistency import cosine_distance
from prompting.model import Prompt, PromptedCLIP, random_vectors
from prompting.templates import fill, template_of
from prompting.towers import Towers, normalize
from training import Batch, PromptTrainer


class RepresentationCLIP(PromptedCLIP):
    """Shared tokens in the later blocks of both towers.

    Args:
        towers: prompting.Towers of a ViT.
        classnames: n_cls names; templates: of their prompts.
        layers: blocks with tokens of their own, from 0, ascending.
        tokens: what the tokens start as, (K, any width).
        alpha: weight of the class token's logits; scale: of the cosines.
    Attributes:
        fused: whether the logits are those of the trained classes.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str], layers: Sequence[int],
                 tokens: Tensor, alpha: float, scale: float) -> None:
        super().__init__(towers)
        self.image_tower, self.layers = towers.promptable_image("MMRL"), list(layers)
        self.alpha, self.scale, self.fused, self.templates = alpha, scale, True, len(templates)
        texts = [fill(template, readable(name)) for template in templates for name in classnames]
        self.class_prompts = towers.text.sentences(towers.text.tokenize(texts))
        self.representation = Prompt(tokens)
        # The layers of a tower start as copies of one.
        image, text = (nn.Linear(tokens.shape[1], tower.width) for tower in (self.image_tower, towers.text))
        self.to_image = nn.ModuleList(copy.deepcopy(image) for _ in layers)
        self.to_text = nn.ModuleList(copy.deepcopy(text) for _ in layers)
        self.projection = nn.Parameter(torch.randn(self.image_tower.width, towers.embed_dim)
                                       / self.image_tower.width ** 0.5)

    def projected(self, linears: nn.ModuleList) -> dict[int, Tensor]:
        """{layer: tokens (K, W)} of one tower."""
        return {layer: linear(self.representation.ctx) for layer, linear in zip(self.layers, linears)}

    def encode_both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> features (B, E) at the class token and of the representation tokens."""
        tower = self.image_tower
        tokens = tower.encode_with_prompts(tower.embed(images), self.projected(self.to_image))
        frozen: Tensor = tower.visual.proj
        return tokens[:, 0].to(frozen.dtype) @ frozen, tokens[:, 1:].float().mean(dim=1) @ self.projection

    def encode_images(self, images: Tensor) -> Tensor:
        return self.encode_both(images)[0]

    def encode_classes(self) -> Tensor:
        text = self.towers.text.encode(self.class_prompts, self.projected(self.to_text), inserted=True)[0]
        return text if self.templates == 1 else normalize(text).view(self.templates, -1, text.shape[1]).mean(dim=0)

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        return self.scale * normalize(image_features) @ normalize(class_features).t()

    def both_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> logits (B, n_cls) of the class token and of the representation tokens."""
        text, features = self.class_features(), self.encode_both(images)
        return self.logits(features[0], text), self.logits(features[1], text)

    def fuse(self, of_class: Tensor, of_representation: Tensor) -> Tensor:
        return self.alpha * of_class + (1 - self.alpha) * of_representation

    def forward(self, images: Tensor) -> Tensor:
        return self.fuse(*self.both_logits(images)) if self.fused else super().forward(images)


@TRAINER_REGISTRY.register()
class MMRL(PromptTrainer):
    model: RepresentationCLIP
    frozen_features = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        node = cfg.TRAINER.MMRL = CN()
        node.ALPHA = 0.7  # weight of the class token's logits; the representation tokens' have the rest
        node.REG_WEIGHT = 0.5  # weight of the distance of image and class features to CLIP's
        node.N_REP_TOKENS = 5  # representation tokens
        node.REP_LAYERS = [6, 7, 8, 9, 10, 11, 12]  # blocks of both towers that the tokens come into, from 1, ascending
        node.REP_DIM = 512  # width of the tokens that the towers share
        node.LOGIT_SCALE = 100.0  # of the cosines, whatever CLIP's own is
        node.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        for key, right, what in (("ALPHA", 0 <= node.ALPHA <= 1, "must be 0 to 1"),
                                 ("REG_WEIGHT", node.REG_WEIGHT >= 0, "must not be negative"),
                                 ("N_REP_TOKENS", node.N_REP_TOKENS >= 1, "must be at least 1"),
                                 ("REP_DIM", node.REP_DIM >= 1, "must be at least 1"),
                                 ("LOGIT_SCALE", node.LOGIT_SCALE > 0, "must be positive")):
            if not right:
                raise InputError(f"TRAINER.MMRL.{key} {what}, it is {node[key]}")
        layers = list(node.REP_LAYERS)
        if not layers or any(type(layer) is not int or layer < 1 for layer in layers) or layers != sorted(set(layers)):
            raise InputError("TRAINER.MMRL.REP_LAYERS must name blocks from 1 on, each once and in their order, such "
                             f"as [2, 3, 4], it is {layers}")

    def build_model(self, towers: Towers, classnames: list[str]) -> RepresentationCLIP:
        node, image = self.node, towers.promptable_image("MMRL")
        if node.REP_LAYERS[-1] > min(image.layers, towers.text.layers):
            raise InputError(f"TRAINER.MMRL.REP_LAYERS has block {node.REP_LAYERS[-1]}, and the towers of this "
                             f"backbone have {image.layers} (image) and {towers.text.layers} (text); name blocks that "
                             "both have")
        self.trained_for = {"trained_classes": list(classnames), "dataset": self.cfg.DATASET.NAME}
        templates = self.frozen_templates(template_of(self.cfg.DATASET.NAME))
        self.frozen_text_features = towers.encode_classnames([readable(name) for name in classnames], templates)
        return RepresentationCLIP(towers, classnames, templates, [layer - 1 for layer in node.REP_LAYERS],
                                  random_vectors(node.N_REP_TOKENS, node.REP_DIM), node.ALPHA, node.LOGIT_SCALE)

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        model, node, label = self.model, self.node, batch["label"]
        text, (image, representation) = model.class_features(), model.encode_both(batch["img"])
        of_class, of_representation = model.logits(image, text), model.logits(representation, text)
        loss = (node.ALPHA * self.cross_entropy(of_class, label)
                + (1 - node.ALPHA) * self.cross_entropy(of_representation, label)
                + node.REG_WEIGHT * cosine_distance(image, batch["frozen"])
                + node.REG_WEIGHT * cosine_distance(text, self.frozen_text_features))
        return loss, model.fuse(of_class, of_representation)

    def extra_state(self) -> dict[str, Any]:
        return dict(self.trained_for)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.trained_for = {"trained_classes": list(state["trained_classes"]), "dataset": state["dataset"]}
        here = {"trained_classes": list(self.dm.dataset.classnames), "dataset": self.cfg.DATASET.NAME}
        self.model.fused = self.trained_for == here
