"""PromptSRC: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", arXiv
2307.06948.

Learned: independent prompts of both towers, held back by three constraints (section 3.2): prompted features and logits
agree with those of the frozen CLIP; the deployed prompts are a Gaussian-weighted average over the epochs of training;
the frozen text features are a mean over many templates.

With t, v the prompted features of length 1, t0, v0 the frozen ones, p, p0 the class probabilities each pair gives, and
means over all entries:

    loss = CE + TEXT_LOSS_WEIGHT mean |t - t0| + IMAGE_LOSS_WEIGHT mean |v - v0| + mean p0 (log p0 - log p)
"""
import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from dassl.utils.stored import require_like
from prompting.consistency import diverse_text_features, l1_distance
from prompting.deep import IndependentCLIP
from prompting.templates import IMAGENET_FIRST_60
from trainers.ivlp import IVLP, independent_prompts_cfg
from training import Batch


@TRAINER_REGISTRY.register()
class PromptSRC(IVLP):
    model: IndependentCLIP
    templates_taken = True  # in training

    @staticmethod
    def extend_cfg(cfg):
        node = cfg.TRAINER.PROMPTSRC = independent_prompts_cfg(n_ctx=4)
        node.TEXT_LOSS_WEIGHT = 25.0  # weight of the distance to the frozen class features
        node.IMAGE_LOSS_WEIGHT = 10.0  # weight of the distance to the frozen image features
        node.GPA_MEAN = 15.0  # the epoch (from 1) whose prompts weigh most in the average
        node.GPA_STD = 1.0  # spread of the average's weights around GPA_MEAN, in epochs

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        if not node.GPA_STD > 0:
            raise InputError(f"TRAINER.PROMPTSRC.GPA_STD must be positive, it is {node.GPA_STD}")

    @functools.cached_property
    def frozen_text_features(self) -> Tensor:
        """t0 before it is normalised, (n_cls, E); only training needs it."""
        return diverse_text_features(self.towers, self.dm.dataset.classnames,
                                     self.frozen_templates(*IMAGENET_FIRST_60))

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        model, towers, node = self.model, self.towers, self.node
        embedded = model.image_tower.embed(batch["img"])
        images, texts = model.encode_embedded(embedded), model.encode_text_prompts()
        frozen_images = model.image_tower.encode(embedded)
        logits = towers.cosine_logits(images, texts)
        frozen_logits = towers.cosine_logits(frozen_images, self.frozen_text_features)

        text = l1_distance(texts, self.frozen_text_features)
        image = l1_distance(images, frozen_images)
        divergence = F.kl_div(logits.log_softmax(1), frozen_logits.log_softmax(1), reduction="sum", log_target=True)
        divergence = divergence / logits.numel()  # by images and classes, as in the authors' code
        loss = (self.cross_entropy(logits, batch["label"]) + node.TEXT_LOSS_WEIGHT * text
                + node.IMAGE_LOSS_WEIGHT * image + divergence)
        return loss, logits

    # ---- the average over the epochs ----
    average: dict[str, Tensor] | None = None  # {name: tensor}, the weighted sum so far
    averaged_for: int | None = None  # over how many epochs its weights sum to 1
    last: dict[str, Tensor] | None = None  # {name: tensor}, at the end of a training: the last epoch's prompts

    def epoch_weight(self, epoch: int, epochs: int | None = None) -> float:
        """The Gaussian weight of `epoch` (from 1); those of all epochs (default OPTIM.MAX_EPOCH) sum to 1."""
        # A softmax, so that a mean far from every epoch gives no 0 / 0.
        numbers = torch.arange(1, (epochs or self.max_epoch) + 1, dtype=torch.float64)
        weights = torch.softmax(-0.5 * ((numbers - self.node.GPA_MEAN) / self.node.GPA_STD) ** 2, dim=0)
        return weights[epoch - 1].item()

    def before_train(self):
        super().before_train()
        done = self.start_epoch
        if self.average and self.averaged_for not in (None, self.max_epoch) and done < self.max_epoch:
            # The weights sum to 1 over another number of epochs.
            now, then = self.epoch_weight(done), self.epoch_weight(done, self.averaged_for)
            self.average = {name: tensor * (now / then) for name, tensor in self.average.items()}
        if self.went_on_from_finished and done < self.max_epoch and self.last:
            self.put(self.last)  # which the average had replaced

    @torch.no_grad()
    def after_epoch(self):
        """Add the prompts of this epoch to the average; after the last epoch the average replaces them."""
        weight, now = self.epoch_weight(self.epoch + 1), self.trained_state()
        before = self.average or {name: torch.zeros_like(tensor) for name, tensor in now.items()}
        self.average = {name: before[name] + weight * tensor for name, tensor in now.items()}
        self.last, self.averaged_for = None, self.max_epoch
        if self.epoch + 1 == self.max_epoch:
            self.finish()
        super().after_epoch()

    def finish(self) -> None:
        """The average replaces the prompts; after fewer epochs than planned it is the average over those."""
        assert self.average is not None  # an epoch has ended
        self.last = self.trained_state()
        done = self.epoch + 1
        whole = 1 if done == self.max_epoch else sum(self.epoch_weight(epoch + 1) for epoch in range(done))
        self.put(self.average if whole == 1 else {name: tensor / whole for name, tensor in self.average.items()})

    @torch.no_grad()
    def put(self, trained: dict[str, Tensor]) -> None:
        """Set the prompts to `trained`, {name: tensor}."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(trained[name])

    def extra_state(self) -> dict[str, Any]:
        if not self.average:
            return {}
        last = {"last": self.last} if self.last else {}
        return {"average": self.average, "epochs": self.averaged_for, **last}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        for name in ("average", "last"):
            if state.get(name) is not None:
                require_like(state[name], self.trained_state(), f"its {name} over the epochs")
        epochs = state.get("epochs")
        if not (epochs is None or type(epochs) is int and epochs > 0):
            raise InputError(f"its average is over {epochs} epochs")
        self.average, self.averaged_for, self.last = state.get("average"), state.get("epochs"), state.get("last")
