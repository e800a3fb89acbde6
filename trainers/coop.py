"""CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", arXiv 2109.01134.

Learned: context vectors in front of, around or behind the class name, one set for all classes (unified context) or one
per class (class-specific context, CSC), section 3.2.
"""
from collections.abc import Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.class_prompts import ClassPrompts
from prompting.model import Prompt, PromptedCLIP
from prompting.towers import Towers
from training import PromptTrainer


class CoOpCLIP(PromptedCLIP):
    """Equation 3: p(y | x) from cos(g(t_y), f(x)), where t_y is the prompt of class y.

    Args:
        towers: prompting.Towers.
        classnames: n_cls names.
        ctx: what the context starts as, (n_ctx, W) or class-specific (n_cls, n_ctx, W).
        position: of the class token: end, middle or front.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], ctx: Tensor, position: str) -> None:
        super().__init__(towers)
        self.prompt_learner = Prompt(ctx)
        self.class_prompts = ClassPrompts(towers.text, classnames, ctx.shape[-2], position)

    def encode_classes(self) -> Tensor:
        ctx = self.prompt_learner.ctx
        prompts = self.class_prompts(ctx[:, None] if ctx.dim() == 3 else ctx)
        return self.towers.text.encode(prompts)[0]


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    frozen_images = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.COOP = CN()
        cfg.TRAINER.COOP.N_CTX = 16  # number of context vectors
        cfg.TRAINER.COOP.CSC = False  # class-specific context: vectors of its own for each class
        cfg.TRAINER.COOP.CTX_INIT = ""  # words to start from; their number then is the number of context vectors
        # where the class name stands: end, middle or front of the context
        cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"
        cfg.TRAINER.COOP.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    @classmethod
    def class_bound(cls, cfg):
        return cls.node_of(cfg).CSC

    def build_model(self, towers: Towers, classnames: list[str]) -> CoOpCLIP:
        node = self.node
        if node.CTX_INIT:
            ctx = self.initial_context(towers)
            if node.CSC:
                ctx = ctx.repeat(len(classnames), 1, 1)
        else:
            if node.N_CTX < 1:
                raise InputError(f"TRAINER.COOP.N_CTX must be at least 1, not {node.N_CTX}")
            ctx = torch.randn(*([len(classnames)] if node.CSC else []), node.N_CTX, towers.text.width) * 0.02
        return CoOpCLIP(towers, classnames, ctx, node.CLASS_TOKEN_POSITION)
