"""Low-rank adaptation (Hu et al., arXiv 2106.09685) by parametrisation.

Learned: for the query, key and value projection of every attention block of both towers and for the first layer of its
MLP, two thin matrices A (RANK, in) and B (out, RANK). The layer is computed with W + ALPHA / RANK * B A; W stays. A
starts at random and B at zero, so that the training starts from the CLIP as it is.
"""
import torch
from torch import nn
from torch.nn.utils import parametrize
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.model import FrozenCLIP
from prompting.templates import template_of
from training import PromptTrainer


class LowRank(nn.Module):
    """W (out, in) -> W + scale * B A."""

    def __init__(self, weight, rank, scale):
        super().__init__()
        out, width = weight.shape
        self.scale = scale
        self.down = nn.Parameter((torch.randn(rank, width) * width**-0.5).to(weight.device))
        self.up = nn.Parameter(torch.zeros(out, rank, device=weight.device))

    def forward(self, weight):
        return weight + self.scale * self.up @ self.down


@TRAINER_REGISTRY.register()
class LoRAParametrized(PromptTrainer):
    trains_towers = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.LORAPARAMETRIZED = CN()
        cfg.TRAINER.LORAPARAMETRIZED.RANK = 4  # rows of A
        cfg.TRAINER.LORAPARAMETRIZED.ALPHA = 16.0  # times 1 / RANK: how far an update reaches
        cfg.TRAINER.LORAPARAMETRIZED.PREC = "auto"  # fp32, amp, bf16 or auto

    def build_model(self, towers, classnames):
        rank, scale = self.node.RANK, self.node.ALPHA / self.node.RANK
        for tower in (towers.model.transformer, towers.model.visual.transformer):
            for block in tower.resblocks:
                for module, name in ((block.attn, "in_proj_weight"), (block.mlp.c_fc, "weight")):
                    low_rank = LowRank(getattr(module, name), rank, scale)
                    parametrize.register_parametrization(module, name, low_rank)
        return FrozenCLIP(towers, classnames, self.frozen_templates(template_of(self.cfg.DATASET.NAME)))
