"""Tuning of the normalisation layers.

Learned: weight and bias of every LayerNorm of both towers, and nothing else. So the class features change with the
training, too.
"""
from torch import nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.model import FrozenCLIP
from prompting.templates import template_of
from training import PromptTrainer


@TRAINER_REGISTRY.register()
class LayerNormTuning(PromptTrainer):
    trains_towers = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.LAYERNORMTUNING = CN()
        cfg.TRAINER.LAYERNORMTUNING.PREC = "auto"  # fp32, amp, bf16 or auto

    def build_model(self, towers, classnames):
        for module in towers.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
        return FrozenCLIP(towers, classnames, self.frozen_templates(template_of(self.cfg.DATASET.NAME)))
