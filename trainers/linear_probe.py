"""Linear probe: a linear classifier on CLIP's frozen image features (Radford et al., arXiv 2103.00020, section 3.2).

Its weights start at zero, or, with INIT text, as zero-shot CLIP's: the text features times the logit scale, so that
training goes on from the zero-shot predictions.
"""
import torch
from torch import nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability
from prompting.backbone import normalize
from prompting.templates import template_of
from prompting.text import readable
from trainers.base import PromptTrainer


class ProbedCLIP(nn.Module):
    """Logits W v / |v| + b of the frozen image feature v.

    Args:
        towers: prompting.Towers.
        weight: the start of W, (n_cls, E).
    """

    def __init__(self, towers, weight):
        super().__init__()
        self.towers = towers
        self.probe = nn.Linear(weight.shape[1], weight.shape[0])
        self.probe.weight.data.copy_(weight)
        self.probe.bias.data.zero_()

    def forward(self, images):
        return self.probe(normalize(self.towers.encode_image(images)))


@TRAINER_REGISTRY.register()
class LinearProbe(PromptTrainer):
    class_bound = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.LINEARPROBE = CN()
        cfg.TRAINER.LINEARPROBE.INIT = "zero"  # or text
        cfg.TRAINER.LINEARPROBE.PREC = "auto"

    def check_cfg(self, cfg):
        check_availability(cfg.TRAINER.LINEARPROBE.INIT, ("zero", "text"), "TRAINER.LINEARPROBE.INIT")

    def build_model(self, towers, classnames):
        if self.node.INIT == "zero":
            return ProbedCLIP(towers, torch.zeros(len(classnames), towers.embed_dim))
        text = towers.frozen_text([readable(name) for name in classnames], [template_of(self.cfg.DATASET.NAME)])
        return ProbedCLIP(towers, towers.logit_scale * text)
