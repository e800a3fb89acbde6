"""CLIPood: Shu et al., "CLIPood: Generalizing CLIP to Out-of-Distributions", arXiv 2302.00864.

Learned: every tensor of the image tower. The class features t are those of the untouched CLIP. Two things hold the
fine-tuning back:

Margin metric softmax. The logits of an image with feature v and label y, in training only, are

    T (cos(v, t_c) - MARGIN cos(t_y, t_c))

so classes near the right one are to be told apart by more. T is CLIP's exp(logit_scale) or TEMPERATURE.

Beta moving average. What is evaluated is the mean of the weights theta_i after all updates i = 0 ... N (0: those of the
start), each with the density of Beta(BETA, BETA) at (i + 1/2) / (N + 1): for a BETA below 1 the first ones and the last
ones count most. N is the number of updates that the training plans. Training itself never sees the average, and an
evaluation in the midst of it takes the average so far. A training that goes on with another length keeps the average
and counts it as much as its updates have in the new plan.

With several source domains the authors put one batch a domain together for a step: DATALOADER.TRAIN_X.SAMPLER
SeqDomainSampler. They round weights to float16 after every update; here nothing is rounded, so published numbers are
not quite those of this training.
"""
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import StepSchedule, build_optimizer
from dassl.utils import InputError
from dassl.utils.stored import require_like
from prompting.model import FrozenCLIP
from prompting.templates import template_of
from prompting.towers import Towers, normalize
from training import Batch, PromptTrainer


def beta_density(beta: float, x: float) -> float:
    """The density of the distribution Beta(beta, beta) at x, 0 < x < 1."""
    scale = math.lgamma(2 * beta) - 2 * math.lgamma(beta)
    return math.exp(scale + (beta - 1) * (math.log(x) + math.log1p(-x)))


@TRAINER_REGISTRY.register()
class CLIPood(PromptTrainer):
    model: FrozenCLIP
    trains_towers = True
    extra_state_share = 1  # the average is as large as the image tower
    average: dict[str, Tensor]  # {name: tensor}, {} before the first update
    weight: float  # the sum of the weights of those in the average
    averaged_for: int  # of how many planned updates these weights are

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.CLIPOOD = CN()
        cfg.TRAINER.CLIPOOD.MARGIN = 0.3  # lambda: how much the similarity of two classes counts as a margin
        cfg.TRAINER.CLIPOOD.BETA = 0.5  # shape of the average's weights over the updates; 1: all alike
        cfg.TRAINER.CLIPOOD.TEMPERATURE = 0.0  # factor of the cosines in the loss; 0: CLIP's exp(logit_scale)
        cfg.TRAINER.CLIPOOD.PREC = "auto"  # precision: fp32, amp, bf16 or auto; what is trained is always float32

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        if node.MARGIN < 0 or node.TEMPERATURE < 0:
            raise InputError(f"TRAINER.CLIPOOD: MARGIN {node.MARGIN} and TEMPERATURE {node.TEMPERATURE} must not be "
                             "negative; give 0 for no margin, and for CLIP's temperature")
        if not node.BETA > 0:
            raise InputError(f"TRAINER.CLIPOOD.BETA {node.BETA}: there is no such beta distribution; give a number "
                             "above 0")

    def build_model(self, towers: Towers, classnames: list[str]) -> FrozenCLIP:
        self.average, self.weight, self.averaged_for = {}, 0.0, 0
        towers.model.visual.requires_grad_(True)
        return FrozenCLIP(towers, classnames, self.frozen_templates(template_of(self.cfg.DATASET.NAME)))

    def build_optimizers(self) -> list[tuple[Optimizer, LRScheduler]]:
        optim = build_optimizer(self.trainables, self.cfg.OPTIM)
        return [(optim, StepSchedule(optim, self.planned_steps))]

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, texts = normalize(self.model.encode_images(batch["img"])), normalize(self.model.class_features())
        cosines, margin = images @ texts.T, self.node.MARGIN * (texts[batch["label"]] @ texts.T)
        logits = (self.node.TEMPERATURE or self.towers.logit_scale) * (cosines - margin)
        # The margin takes the right class down: an accuracy is that of the logits without it.
        return self.cross_entropy(logits, batch["label"]), self.towers.logit_scale * cosines

    # ---- the average ----
    def average_weight(self, update: int) -> float:
        """The weight of the tensors after `update` updates (0: those of the start), not normalised."""
        return beta_density(self.node.BETA, (min(update, self.planned_steps) + 0.5) / (self.planned_steps + 1))

    def before_train(self):
        super().before_train()
        if self.average and self.averaged_for != self.planned_steps:
            done = self.start_epoch * len(self.train_loader_x) + self.first_batch
            self.weight = sum(self.average_weight(update) for update in range(done + 1))
            self.averaged_for = self.planned_steps

    def training_step(self, batch: Batch) -> Mapping[str, float | Tensor]:
        trained = {name: tensor.detach() for name, tensor in self.trained_tensors().items()}
        if not self.average:
            self.average = {name: tensor.clone() for name, tensor in trained.items()}
            self.weight, self.averaged_for = self.average_weight(0), self.planned_steps
        summary = super().training_step(batch)
        # By the place of the batch: an update that is left out for overflow does not move the others.
        own = self.average_weight(self.epoch * self.num_batches + self.batch_idx + 1)
        self.weight += own
        for name, tensor in trained.items():  # which the update has changed in place
            self.average[name].lerp_(tensor, own / self.weight)
        return summary

    def evaluated_weights(self) -> dict[str, Tensor] | None:
        return self.average or None

    def extra_state(self) -> dict[str, Any]:
        return {"average": self.average, "weight": self.weight, "updates": self.averaged_for}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        average, weight, updates = state.get("average"), state.get("weight"), state.get("updates")
        if average != {}:
            require_like(average, self.trained_tensors(), "its average over the updates")
        if not isinstance(weight, float) or not math.isfinite(weight) or weight < 0 or bool(average) != (weight > 0):
            raise InputError(f"the weights of its average sum to {weight!r}")
        if type(updates) is not int or updates < bool(average):
            raise InputError(f"its average is one over {updates!r} updates")
        assert isinstance(average, dict)
        self.average = {name: tensor.to(self.device, torch.float32, copy=True) for name, tensor in average.items()}
        self.weight, self.averaged_for = weight, updates
