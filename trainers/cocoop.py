"""CoCoOp: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", arXiv 2203.05557.

Learned: context vectors, and a small network that shifts them for each image (section 3.2).
"""
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.class_prompts import ClassPrompts
from prompting.model import PromptedCLIP, PromptWithNet
from prompting.towers import Towers, normalize
from training import PromptTrainer

PROMPTS_AT_ONCE = 4096  # prompts (images x classes) that evaluation runs through the text tower at a time


class CoCoOpCLIP(PromptedCLIP):
    """Equation 5: the context of image x is v_m + pi for every token m, where pi = h(f(x)).

    Args:
        towers: prompting.Towers.
        classnames: n_cls names.
        ctx: what v starts as, (n_ctx, W).
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], ctx: Tensor) -> None:
        super().__init__(towers)
        self.class_prompts = ClassPrompts(towers.text, classnames, len(ctx))
        hidden = towers.embed_dim // 16
        self.prompt_learner = PromptWithNet(ctx, nn.Sequential(OrderedDict([
            ("linear1", nn.Linear(towers.embed_dim, hidden)),
            ("relu", nn.ReLU()),
            ("linear2", nn.Linear(hidden, towers.text.width)),
        ])))

    def forward(self, images: Tensor) -> Tensor:
        """Every image has prompts of its own: the text tower runs once per image."""
        features = normalize(self.encode_images(images))
        if torch.is_grad_enabled():
            return self.logits_of(features)
        chunk = max(1, PROMPTS_AT_ONCE // self.class_prompts.n_cls)
        return torch.cat([self.logits_of(part) for part in features.split(chunk)])

    def logits_of(self, features: Tensor) -> Tensor:
        """Normalised image features (B, E) -> (B, n_cls)."""
        shift = self.prompt_learner.meta_net(features)
        ctx = self.prompt_learner.ctx + shift[:, None].float()  # (B, n_ctx, W)
        text = self.towers.text.encode(self.class_prompts(ctx))  # (B, n_cls, E)
        return self.towers.cosine_logits(features[:, None], text)[:, 0]


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    frozen_images = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.COCOOP = CN()
        cfg.TRAINER.COCOOP.N_CTX = 16  # number of context vectors
        cfg.TRAINER.COCOOP.CTX_INIT = ""  # words to start from; their number then is the number of context vectors
        cfg.TRAINER.COCOOP.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def build_model(self, towers: Towers, classnames: list[str]) -> CoCoOpCLIP:
        return CoCoOpCLIP(towers, classnames, self.initial_context(towers))
