"""Low-rank adaptation (Hu et al., arXiv 2106.09685) by wrapped layers, as libraries of adapters do it.

Learned: in the last BLOCKS blocks of both towers, beside each linear layer of the MLP and the output projection of
attention, a low-rank path x -> ALPHA / RANK * B A x. The wrapper is no `nn.Linear`: it has no weight to read.
"""
from torch import nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.model import FrozenCLIP
from prompting.templates import template_of
from training import PromptTrainer

TARGETS = (("mlp", "c_fc"), ("mlp", "c_proj"), ("attn", "out_proj"))


class LoRALinear(nn.Module):
    def __init__(self, base, rank, scale):
        super().__init__()
        self.base, self.scale = base, scale
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


@TRAINER_REGISTRY.register()
class LoRAWrapped(PromptTrainer):
    trains_towers = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.LORAWRAPPED = CN()
        cfg.TRAINER.LORAWRAPPED.BLOCKS = 2  # how many blocks of each tower, from the last one back
        cfg.TRAINER.LORAWRAPPED.RANK = 4  # width of the path
        cfg.TRAINER.LORAWRAPPED.ALPHA = 64.0  # times 1 / RANK: how far an update reaches
        cfg.TRAINER.LORAWRAPPED.PREC = "auto"  # fp32, amp, bf16 or auto

    def build_model(self, towers, classnames):
        node = self.node
        for tower in (towers.model.transformer, towers.model.visual.transformer):
            for block in tower.resblocks[-node.BLOCKS:]:
                for parent, name in TARGETS:
                    parent = getattr(block, parent)
                    beside = LoRALinear(getattr(parent, name), node.RANK, node.ALPHA / node.RANK)
                    setattr(parent, name, beside.to(towers.device))
        return FrozenCLIP(towers, classnames, self.frozen_templates(template_of(self.cfg.DATASET.NAME)))
