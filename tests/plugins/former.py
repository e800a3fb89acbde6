"""Method files as earlier releases had them: where they import from, and `class_bound` as a property."""
from torch import nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.model import Prompt, PromptedCLIP
from trainers.base import PromptTrainer
from trainers.coop import CoOp
from trainers.episodes import split_of
from trainers.frozen_features import FrozenFeatures


class Shifted(PromptedCLIP):
    def __init__(self, towers, classnames, own):
        super().__init__(towers)
        self.text = towers.frozen_text(classnames, ["{}"])
        self.shift = (nn.Parameter(self.text.detach().clone() * 0) if own else
                      Prompt.random(towers.embed_dim))

    def encode_classes(self):
        return self.text + (self.shift if isinstance(self.shift, nn.Parameter) else self.shift.ctx)


@TRAINER_REGISTRY.register()
class Former(PromptTrainer):
    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.FORMER = CN({"PREC": "auto", "OWN": False, "SPLIT": "auto"})

    @property
    def class_bound(self):
        return self.node.OWN

    def check_cfg(self, cfg):
        assert split_of(cfg) == "class"

    def build_model(self, towers, classnames):
        return Shifted(towers, classnames, self.node.OWN)


@TRAINER_REGISTRY.register()
class FormerFeatures(FrozenFeatures):
    trains = False
    class_bound = False

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.FORMERFEATURES = CN({"PREC": "auto"})

    def build_model(self, towers, classnames):
        model = Shifted(towers, classnames, False)
        assert sum(len(batch["label"]) for batch in self.few_shot_batches(0)) == len(self.dm.dataset.train_x)
        return model


@TRAINER_REGISTRY.register()
class SoftCoOp(CoOp):
    """A built-in method under another name, with a node of its own."""

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.SOFTCOOP = CN({"PREC": "auto", "N_CTX": 2, "CSC": False, "CTX_INIT": "",
                                   "CLASS_TOKEN_POSITION": "end"})
