"""DePT on CoOp: Zhang et al., "DePT: Decoupled Prompt Tuning", arXiv 2309.07439.

Learned: CoOp's context, and a second head beside the cosine of image and text: a linear classifier over features that
are scaled and shifted per channel (the channel-adjusted transfer head). That head takes up what is specific to the
trained classes; new classes are scored by the cosine alone. As in the authors' code the logits of the two heads are
mixed, not their probabilities.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import InputError
from prompting.towers import Towers
from trainers.coop import CoOpCLIP
from training import Batch, PromptTrainer


class ChannelAdjustment(nn.Module):
    """scale * x + bias, with one scale and one bias per channel; (B, E) -> (B, E)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * features + self.bias


class DecoupledCLIP(CoOpCLIP):
    """CoOp with the second head.

    Args:
        towers, classnames, ctx: as for CoOp.
        weight: of the second head, in the loss and in the logits of the trained classes.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], ctx: Tensor, weight: float) -> None:
        super().__init__(towers, classnames, ctx, "end")
        self.weight, self.has_head = weight, True
        self.film_lp_img = ChannelAdjustment(towers.embed_dim)
        self.film_lp_text = ChannelAdjustment(towers.embed_dim)
        self.linear_probe_proj = nn.Linear(towers.embed_dim, len(classnames))

    def head(self, adjust: ChannelAdjustment, features: Tensor) -> Tensor:
        """Features (B, E), not normalised -> the second head's logits (B, n_cls)."""
        return self.linear_probe_proj(adjust(features.float()))

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        cosine = super().logits(image_features, class_features)
        if not self.has_head:
            return cosine
        return (1 - self.weight) * cosine + self.weight * self.head(self.film_lp_img, image_features)


@TRAINER_REGISTRY.register()
class DePT(PromptTrainer):
    model: DecoupledCLIP
    frozen_images = True
    static_step = True
    class_tensors = ("linear_probe_proj.",)

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.DEPT = CN()
        cfg.TRAINER.DEPT.N_CTX = 16  # number of context vectors
        cfg.TRAINER.DEPT.CTX_INIT = ""  # words to start from; their number then is the number of context vectors
        cfg.TRAINER.DEPT.WEIGHT = 0.7  # weight of the second head
        cfg.TRAINER.DEPT.HEAD_LR = 6.5  # the second head's learning rate, in OPTIM.LR
        cfg.TRAINER.DEPT.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        if not 0 <= node.WEIGHT <= 1 or not node.HEAD_LR > 0:
            raise InputError("TRAINER.DEPT: WEIGHT must be 0 to 1 and HEAD_LR positive, they are "
                             f"{node.WEIGHT} and {node.HEAD_LR}")

    def build_model(self, towers: Towers, classnames: list[str]) -> DecoupledCLIP:
        return DecoupledCLIP(towers, classnames, self.initial_context(towers), self.node.WEIGHT)

    def build_optimizers(self) -> list[tuple[Optimizer, LRScheduler]]:
        optim_cfg, ctx = self.cfg.OPTIM, self.model.prompt_learner.ctx
        head = [p for p in self.trainables if p is not ctx]
        groups = [{"params": [ctx]}, {"params": head, "lr": optim_cfg.LR * self.node.HEAD_LR}]
        optim = build_optimizer(self.model, optim_cfg, groups)
        return [(optim, build_lr_scheduler(optim, optim_cfg))]

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        model, label = self.model, batch["label"]
        images, text = model.encode_images(batch["img"]), model.class_features()
        cosine = self.towers.cosine_logits(images, text)
        # The head learns from images and from the texts of their classes alike.
        head = torch.cat([model.head(model.film_lp_text, text[label]), model.head(model.film_lp_img, images)])
        loss = ((1 - model.weight) * self.cross_entropy(cosine, label)
                + model.weight * self.cross_entropy(head, torch.cat([label, label])))
        return loss, (1 - model.weight) * cosine + model.weight * head[len(label):]

    def extra_state(self) -> dict[str, Any]:
        return {"head_classes": list(self.dm.dataset.classnames)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.model.has_head = state["head_classes"] == list(self.dm.dataset.classnames)
