"""CLIP-LoRA: Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", arXiv 2405.18541.

Learned: low-rank paths beside projections of attention, in blocks of both towers. Loss: cross-entropy.

A projection y = W x + b, whose W and b are frozen, becomes

    y = W x + b + ALPHA / sqrt(RANK) B A d(x),      A (RANK, width), B (width, RANK) = 0 at the start

d is dropout, in training only: the query, key and value paths each drop entries of their own. As in the authors' code
the scale has the square root of the rank, cosines are multiplied by 100 and not by CLIP's learned scale, all datasets
share one template, and the rate falls with the updates, by a cosine to 1e-6. Their code, with DROPOUT exactly 0, sends
the gradient to the input of a projection through W alone; here it is the true one. The last weights are evaluated.

POSITION is a share of each tower's depth. The authors give blocks for a depth of 12: bottom 0 to 3, mid 4 to 7, up 8 to
11, half-bottom 0 to 5, half-up 6 to 11, top3 9 to 11. Thirds and halves of other depths are rounded.
"""
import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import StepSchedule, build_optimizer
from dassl.utils import InputError, check_availability
from prompting.adapted import AdaptedCLIP
from prompting.blocks import Tower
from prompting.low_rank import PARTS, POSITIONS, LowRankPaths, layers_at
from prompting.templates import DEFAULT
from prompting.towers import Towers, normalize
from training import PromptTrainer

ENCODERS = ("both", "text", "vision")
LOWEST_RATE = 1e-6  # what the learning rate falls to


class LowRankCLIP(AdaptedCLIP):
    """Logits: `scale` times the cosine; CLIP's own scale if it is 0."""

    scale = 100.0

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        if not self.scale:
            return super().logits(image_features, class_features)
        return self.scale * normalize(image_features) @ normalize(class_features).T


@TRAINER_REGISTRY.register()
class CLIPLoRA(PromptTrainer):
    model: LowRankCLIP
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.CLIPLORA = CN()
        cfg.TRAINER.CLIPLORA.RANK = 2  # rows of A: the rank of what is added to a projection
        cfg.TRAINER.CLIPLORA.ALPHA = 1.0  # a path is scaled by ALPHA / sqrt(RANK)
        cfg.TRAINER.CLIPLORA.PARAMS = "qkv"  # which projections have a path: letters of q, k, v and o (output)
        # which blocks of a tower have paths: all, bottom, mid, up (thirds), half-bottom, half-up or top3
        cfg.TRAINER.CLIPLORA.POSITION = "all"
        cfg.TRAINER.CLIPLORA.ENCODER = "both"  # which towers have paths: both, text or vision
        cfg.TRAINER.CLIPLORA.DROPOUT = 0.25  # share of the entries of a path's input that are dropped in training
        cfg.TRAINER.CLIPLORA.LOGIT_SCALE = 100.0  # factor of the cosines in the logits; 0: CLIP's own
        cfg.TRAINER.CLIPLORA.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node, key = self.node_of(cfg), "TRAINER.CLIPLORA"
        check_availability(node.POSITION, POSITIONS, f"{key}.POSITION")
        check_availability(node.ENCODER, ENCODERS, f"{key}.ENCODER")
        if not node.PARAMS or set(node.PARAMS) - set(PARTS) or len(set(node.PARAMS)) != len(node.PARAMS):
            raise InputError(f"{key}.PARAMS is '{node.PARAMS}'; give some of the letters q, k, v and o, each once, as "
                             "in qkv")
        if node.RANK < 1 or not node.ALPHA > 0:
            raise InputError(f"{key}: RANK must be at least 1 and ALPHA positive, they are {node.RANK} and "
                             f"{node.ALPHA}")
        if not 0 <= node.DROPOUT < 1:
            raise InputError(f"{key}.DROPOUT is a share from 0 to below 1, not {node.DROPOUT}")
        if not node.LOGIT_SCALE >= 0:
            raise InputError(f"{key}.LOGIT_SCALE must be positive, or 0 for CLIP's own, not {node.LOGIT_SCALE}")

    def build_model(self, towers: Towers, classnames: list[str]) -> LowRankCLIP:
        node = self.node
        vision = node.ENCODER in ("both", "vision")
        image = self.paths(towers.promptable_image("CLIPLoRA", "adapts the image tower")) if vision else {}
        text = self.paths(towers.text) if node.ENCODER in ("both", "text") else {}
        model = LowRankCLIP(towers, classnames, self.frozen_templates(DEFAULT), text, image, "CLIPLoRA")
        model.scale = node.LOGIT_SCALE
        return model

    def paths(self, tower: Tower) -> dict[int, LowRankPaths]:
        """{layer: its paths} of a tower."""
        node = self.node
        scale = node.ALPHA / math.sqrt(node.RANK)
        return {layer: LowRankPaths(tower.width, node.PARAMS, node.RANK, scale, node.DROPOUT)
                for layer in layers_at(node.POSITION, tower.layers)}

    def build_optimizers(self) -> list[tuple[Optimizer, LRScheduler]]:
        optim = build_optimizer(self.trainables, self.cfg.OPTIM)
        return [(optim, StepSchedule(optim, self.planned_steps, minimum=min(LOWEST_RATE, self.cfg.OPTIM.LR)))]
