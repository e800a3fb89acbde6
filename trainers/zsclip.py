"""Zero-shot CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv
2103.00020, section 3.1), with one hand-written prompt per dataset or an ensemble of prompts."""
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability
from prompting.model import FrozenCLIP
from prompting.templates import ensemble_of, template_of
from prompting.towers import Towers
from training import PromptTrainer


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """The dataset's own template, such as "a photo of a {}, a type of pet."."""

    trains = False
    learns_from_images = False
    frozen_images = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.ZEROSHOTCLIP = CN()
        cfg.TRAINER.ZEROSHOTCLIP.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def build_model(self, towers: Towers, classnames: list[str]) -> FrozenCLIP:
        return FrozenCLIP(towers, classnames, self.frozen_templates(template_of(self.cfg.DATASET.NAME)))


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(PromptTrainer):
    """The mean of several templates' features: 7 selected ImageNet templates and the dataset's own, or all 80
    (section 3.1.4)."""

    trains = False
    learns_from_images = False
    frozen_images = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.ZEROSHOTCLIP2 = CN()
        cfg.TRAINER.ZEROSHOTCLIP2.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto
        # which templates: selected (7 and the dataset's own) or all (80)
        cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES = "selected"

    def check_cfg(self, cfg):
        check_availability(self.node_of(cfg).TEMPLATES, ("selected", "all"), "TRAINER.ZEROSHOTCLIP2.TEMPLATES")

    def build_model(self, towers: Towers, classnames: list[str]) -> FrozenCLIP:
        everything = self.node.TEMPLATES == "all"
        own = () if everything else self.own_templates()
        return FrozenCLIP(towers, classnames, ensemble_of(self.cfg.DATASET.NAME, everything, own))
