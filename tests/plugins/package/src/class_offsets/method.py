"""ClassOffsets: a learned vector for each class is added to its text feature."""
import torch
from torch import nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting import normalize
from prompting.model import PromptedCLIP
from training import PromptTrainer


class OffsetCLIP(PromptedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers)
        self.frozen = towers.encode_classnames(classnames, ["a photo of a {}."])  # (n_cls, E)
        self.offsets = nn.Parameter(torch.zeros_like(self.frozen))

    def encode_classes(self):
        return normalize(self.frozen + self.offsets)


@TRAINER_REGISTRY.register()
class ClassOffsets(PromptTrainer):
    class_tensors = ("offsets",)

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.CLASSOFFSETS = CN({"PREC": "auto"})

    @classmethod
    def class_bound(cls, cfg):
        return True

    def build_model(self, towers, classnames):
        return OffsetCLIP(towers, classnames)
