"""Full fine-tuning, the baseline of domain generalisation that is called ERM (empirical risk minimisation): the
cross-entropy alone, no prompt and no regularisation. It is what WiSE-FT (trainers/wiseft.py; Wortsman et al., "Robust
fine-tuning of zero-shot models", arXiv 2109.01903) starts from: its alpha = 1.

Learned: every tensor of the image tower, and a linear classifier that starts as zero-shot CLIP. With v the image
feature and t_c the frozen text feature of class c, both of length 1,

    logits = W v + b,    at the start W_c = exp(logit_scale) t_c and b = 0

so the logit scale is trained as a part of W. The text tower stays as it is. As in the authors' code of WiSE-FT class
names go into the prompts as they are, "_" included.

The rows of W and b belong to the trained classes and are found by their names. A class that was not trained has its
zero-shot row, on the image tower that was trained: what that gives is not published.
"""
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import StepSchedule, build_optimizer
from dassl.utils import InputError, check_availability
from prompting.model import PromptedCLIP
from prompting.templates import DEFAULT, IMAGENET_ALL
from prompting.towers import Towers, normalize
from training import PromptTrainer
from training.class_rows import rows_state, take_rows


def declare_fine_tuning(node: CN, templates: str) -> None:
    """Add to a config node what every method has that fine-tunes the image tower with a classifier."""
    node.TEMPLATES = templates  # prompts of the classifier's start: simple ("a photo of a {}.") or all (OpenAI's 80)
    node.WARMUP = 0.0  # share of the updates in which the learning rate climbs to OPTIM.LR; then it falls by a cosine
    node.PREC = "auto"  # precision: fp32, amp, bf16 or auto; what is trained is always float32


class ClassifierCLIP(PromptedCLIP):
    """An image tower with a linear classifier over its normalised features.

    Args:
        towers: trainable ones.
        zero_shot: what the classifier's weight starts as, (n_cls, E); kept as the attribute of this name.
    """

    def __init__(self, towers: Towers, zero_shot: Tensor) -> None:
        super().__init__(towers)
        self.zero_shot = zero_shot
        self.head = nn.Linear(towers.embed_dim, len(zero_shot))
        self.to_zero_shot()

    @torch.no_grad()
    def to_zero_shot(self) -> None:
        """Let the classifier be zero-shot CLIP's."""
        self.head.weight.copy_(self.zero_shot)
        self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(normalize(self.encode_images(images)))
        return logits


@TRAINER_REGISTRY.register()
class FineTune(PromptTrainer):
    model: ClassifierCLIP
    trains_towers = True
    static_step = True
    class_tensors = ("head.",)

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.FINETUNE = CN()
        declare_fine_tuning(cfg.TRAINER.FINETUNE, templates="simple")

    def check_cfg(self, cfg):
        name, node = f"TRAINER.{type(self).__name__.upper()}", self.node_of(cfg)
        check_availability(node.TEMPLATES, ("simple", "all"), f"{name}.TEMPLATES")
        if not 0 <= node.WARMUP < 1:
            raise InputError(f"{name}.WARMUP {node.WARMUP}: it is a share of the updates; give a number from 0 on and "
                             "below 1")

    def build_model(self, towers: Towers, classnames: list[str]) -> ClassifierCLIP:
        templates = self.frozen_templates(*(IMAGENET_ALL if self.node.TEMPLATES == "all" else (DEFAULT,)))
        zero_shot = towers.logit_scale * self.frozen_towers.encode_classnames(classnames, templates)
        del self.frozen_towers  # on a GPU they are one more copy of the CLIP
        towers.model.visual.requires_grad_(True)
        return ClassifierCLIP(towers, zero_shot)

    def build_optimizers(self) -> list[tuple[Optimizer, LRScheduler]]:
        optim, steps = build_optimizer(self.trainables, self.cfg.OPTIM), self.planned_steps
        return [(optim, StepSchedule(optim, steps, min(round(self.node.WARMUP * steps), steps - 1)))]

    def extra_state(self) -> dict[str, Any]:
        return rows_state(self.dm.dataset.classnames, dict(self.model.head.named_parameters()))

    def load_extra_state(self, state: dict[str, Any]) -> None:
        names = list(self.dm.dataset.classnames)
        if state.get("classnames") != names:
            self.model.to_zero_shot()
        take_rows(state, names, dict(self.model.head.named_parameters()))
