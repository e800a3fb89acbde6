"""CLIP-Adapter: Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", arXiv 2110.04544.

Learned: a two-layer network (the adapter) behind the image tower; its output is mixed with the frozen feature.
"""
from collections.abc import Sequence

from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.adapter import Adapter
from prompting.model import FrozenCLIP
from prompting.templates import template_of
from prompting.towers import Towers
from training import PromptTrainer


class AdaptedCLIP(FrozenCLIP):
    """v' = ratio A(v) + (1 - ratio) v for the frozen, not normalised image feature v; classes as in zero-shot CLIP.

    Args:
        towers: prompting.Towers.
        classnames: n_cls names; templates: their prompts.
        ratio: the adapter's share of the mixture; reduction: how much narrower the adapter is inside.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str], ratio: float,
                 reduction: int) -> None:
        super().__init__(towers, classnames, templates)
        self.adapter, self.ratio = Adapter(towers.embed_dim, reduction), ratio

    def encode_images(self, images: Tensor) -> Tensor:
        features = self.towers.encode_image(images).float()
        return self.ratio * self.adapter(features) + (1 - self.ratio) * features


@TRAINER_REGISTRY.register()
class CLIPAdapter(PromptTrainer):
    frozen_images = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.CLIPADAPTER = CN()
        cfg.TRAINER.CLIPADAPTER.RATIO = 0.2  # share of the adapter in the mixture with the frozen feature
        cfg.TRAINER.CLIPADAPTER.REDUCTION = 4  # how many times narrower the adapter is inside
        cfg.TRAINER.CLIPADAPTER.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def build_model(self, towers: Towers, classnames: list[str]) -> AdaptedCLIP:
        node = self.node
        if not 0 <= node.RATIO <= 1 or not 1 <= node.REDUCTION <= towers.embed_dim:
            raise InputError(f"TRAINER.CLIPADAPTER: RATIO must be 0 to 1 and REDUCTION 1 to {towers.embed_dim}, they "
                             f"are {node.RATIO} and {node.REDUCTION}")
        templates = self.frozen_templates(template_of(self.cfg.DATASET.NAME))
        return AdaptedCLIP(towers, classnames, templates, node.RATIO, node.REDUCTION)
