"""TaskRes: Yu et al., "Task Residual for Tuning Vision-Language Models", arXiv 2211.10277.

Learned: a residual on the frozen text feature of each class. With t the text features and x the residuals,

    class features = t + RESIDUAL_SCALE x,

and x starts at zero, so that training goes on from zero-shot CLIP (the paper's "regular base"). As in the authors' code
t is the text feature itself, not scaled to length 1; on ImageNet it is the mean of eight templates' features; class
names keep their "_". Loss: cross-entropy. x has a row for each trained class, found again by its name: any of these
classes can be scored, such as those of ImageNet-A, new ones cannot. The paper's "enhanced base", a t that was trained
beforehand, needs files that are not published.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.model import PromptedCLIP
from prompting.templates import fill, residual_templates_of
from prompting.towers import Towers
from training import PromptTrainer
from training.class_rows import rows_state, take_rows


class TaskResidual(nn.Module):
    """The residuals x (n_cls, E), which start at zero."""

    def __init__(self, n_cls: int, embed_dim: int) -> None:
        super().__init__()
        self.text_feature_residuals = nn.Parameter(torch.zeros(n_cls, embed_dim))


class ResidualCLIP(PromptedCLIP):
    """CLIP with frozen towers, and residuals on its class features.

    Args:
        towers: prompting.Towers.
        classnames: n_cls names; templates: their prompts.
        scale: the weight of the residuals.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str], scale: float) -> None:
        super().__init__(towers)
        self.scale = scale
        texts = [towers.text.encode_texts([fill(template, name) for name in classnames]) for template in templates]
        self.base_text_features = torch.stack(texts).mean(dim=0)
        self.prompt_learner = TaskResidual(*self.base_text_features.shape)

    def encode_classes(self) -> Tensor:
        return self.base_text_features + self.scale * self.prompt_learner.text_feature_residuals


@TRAINER_REGISTRY.register()
class TaskRes(PromptTrainer):
    model: ResidualCLIP
    frozen_images = True
    static_step = True
    class_tensors = ("prompt_learner.",)

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.TASKRES = CN()
        cfg.TRAINER.TASKRES.RESIDUAL_SCALE = 0.5  # weight of the residuals beside the text features
        cfg.TRAINER.TASKRES.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    @classmethod
    def class_bound(cls, cfg):
        return True

    def check_cfg(self, cfg):
        scale = self.node_of(cfg).RESIDUAL_SCALE
        if not scale > 0:
            raise InputError(f"TRAINER.TASKRES.RESIDUAL_SCALE must be positive, it is {scale}")

    def build_model(self, towers: Towers, classnames: list[str]) -> ResidualCLIP:
        templates = self.frozen_templates(*residual_templates_of(self.cfg.DATASET.NAME))
        return ResidualCLIP(towers, classnames, templates, self.node.RESIDUAL_SCALE)

    def extra_state(self) -> dict[str, Any]:
        return rows_state(self.dm.dataset.classnames, dict(self.model.prompt_learner.named_parameters()))

    def load_extra_state(self, state: dict[str, Any]) -> None:
        known = take_rows(state, list(self.dm.dataset.classnames), dict(self.model.prompt_learner.named_parameters()))
        if not all(known):
            raise InputError(f"it has no row for {self.dm.dataset.classnames[known.index(False)]}")
