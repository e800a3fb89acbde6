"""Linear probe: a linear classifier on CLIP's frozen image features (Radford et al., arXiv 2103.00020, section 3.2).

Learned: the classifier. Its weights start at zero, or, with INIT text, as the class features of zero-shot CLIP, so
that training goes on from the zero-shot predictions (Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation
of Large Vision-Language Models", arXiv 2312.12730).
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability
from prompting.class_prompts import readable
from prompting.templates import template_of
from prompting.towers import Towers, normalize
from training import PromptTrainer


class ProbedCLIP(nn.Module):
    """Logits s W v / |v| + b of the frozen image feature v, with CLIP's logit scale s: weights that are class features
    give CLIP's logits.

    Args:
        towers: prompting.Towers.
        weight: what W starts as, (n_cls, E).
    """

    def __init__(self, towers: Towers, weight: Tensor) -> None:
        super().__init__()
        self.towers = towers
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)))

    def forward(self, images: Tensor) -> Tensor:
        features = normalize(self.towers.encode_image(images))
        return F.linear(self.towers.logit_scale * features, self.weight, self.bias)


@TRAINER_REGISTRY.register()
class LinearProbe(PromptTrainer):
    frozen_images = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.LINEARPROBE = CN()
        # what the classifier starts as: zero, or text (the class features of zero-shot CLIP)
        cfg.TRAINER.LINEARPROBE.INIT = "zero"
        cfg.TRAINER.LINEARPROBE.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    @classmethod
    def class_bound(cls, cfg):
        return True

    def check_cfg(self, cfg):
        check_availability(self.node_of(cfg).INIT, ("zero", "text"), "TRAINER.LINEARPROBE.INIT")

    def build_model(self, towers: Towers, classnames: list[str]) -> ProbedCLIP:
        if self.node.INIT == "zero":
            return ProbedCLIP(towers, torch.zeros(len(classnames), towers.embed_dim))
        templates = self.frozen_templates(template_of(self.cfg.DATASET.NAME))
        return ProbedCLIP(towers, towers.encode_classnames([readable(name) for name in classnames], templates))
