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
    frozen_features = True
    static_step = True
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
        images, texts = model.encode_images(batch["img"]), model.encode_text_prompts()
        logits = towers.cosine_logits(images, texts)
        frozen_logits = towers.cosine_logits(batch["frozen"], self.frozen_text_features)

        text = l1_distance(texts, self.frozen_text_features)
        image = l1_distance(images, batch["frozen"])
        divergence = F.kl_div(logits.log_softmax(1), frozen_logits.log_softmax(1), reduction="sum", log_target=True)
        divergence = divergence / logits.numel()  # by images and classes, as in the authors' code
        loss = (self.cross_entropy(logits, batch["label"]) + node.TEXT_LOSS_WEIGHT * text
                + node.IMAGE_LOSS_WEIGHT * image + divergence)
        return loss, logits

    # ---- the average over the epochs, which is evaluated when the training has ended ----
    average: dict[str, Tensor] | None = None  # {name: tensor}, the weighted sum so far
    averaged_for: int | None = None  # over how many epochs its weights sum to 1
    done: int | None = None  # how many epochs are in it; None where a checkpoint of an earlier release does not say
    ended = False  # whether the training has ended
    # At the end of a training by an earlier release: the last epoch's prompts, which the average had replaced.
    last: dict[str, Tensor] | None = None

    def epoch_weight(self, epoch: int, epochs: int | None = None) -> float:
        """The Gaussian weight of `epoch` (from 1); those of all epochs (default OPTIM.MAX_EPOCH) sum to 1."""
        # A softmax, so that a mean far from every epoch gives no 0 / 0.
        numbers = torch.arange(1, (epochs or self.max_epoch) + 1, dtype=torch.float64)
        weights = torch.softmax(-0.5 * ((numbers - self.node.GPA_MEAN) / self.node.GPA_STD) ** 2, dim=0)
        return weights[epoch - 1].item()

    def before_train(self):
        super().before_train()
        done = self.start_epoch
        if self.average and self.done is None:
            self.done = done or None
        if done == self.max_epoch:
            return
        self.ended = False
        if self.average and self.averaged_for not in (None, self.max_epoch):
            # The weights sum to 1 over another number of epochs. A checkpoint within the first epoch's validation has
            # that epoch in its average.
            epoch = done or 1
            now, then = self.epoch_weight(epoch), self.epoch_weight(epoch, self.averaged_for)
            self.average = {name: tensor * (now / then) for name, tensor in self.average.items()}
        if self.went_on_from_finished and self.last:
            self.put(self.last)

    @torch.no_grad()
    def after_epoch(self):
        """Add the prompts of this epoch to the average, which is evaluated from the last epoch on."""
        if self.done != self.epoch + 1:  # else the run was stopped in this epoch's validation
            weight, now = self.epoch_weight(self.epoch + 1), self.trained_state()
            before = self.average or {name: torch.zeros_like(tensor) for name, tensor in now.items()}
            self.average = {name: before[name] + weight * tensor for name, tensor in now.items()}
        self.last, self.averaged_for, self.done = None, self.max_epoch, self.epoch + 1
        if self.epoch + 1 == self.max_epoch:
            self.finish()
        super().after_epoch()

    def finish(self) -> None:
        self.ended = True

    def evaluated_weights(self) -> dict[str, Tensor] | None:
        """The average, once the training has ended; after fewer epochs than planned it is the average over those."""
        if not self.ended:
            return None
        assert self.average is not None and self.done is not None  # an epoch has ended
        if self.done == self.averaged_for:
            return self.average
        whole = sum(self.epoch_weight(epoch + 1, self.averaged_for) for epoch in range(self.done))
        return {name: tensor / whole for name, tensor in self.average.items()}

    @torch.no_grad()
    def put(self, trained: dict[str, Tensor]) -> None:
        """Set the prompts to `trained`, {name: tensor}."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(trained[name])

    def extra_state(self) -> dict[str, Any]:
        if not self.average:
            return {}
        last = {"last": self.last} if self.last else {}
        return {"average": self.average, "epochs": self.averaged_for, "done": self.done, "ended": self.ended, **last}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        for name in ("average", "last"):
            if state.get(name) is not None:
                require_like(state[name], self.trained_state(), f"its {name} over the epochs")
        epochs, done, ended = state.get("epochs"), state.get("done"), state.get("ended", False)
        for number in (epochs, done):
            if not (number is None or type(number) is int and number > 0):
                raise InputError(f"its average is over {number} epochs")
        if type(ended) is not bool or ended and (state.get("average") is None or not epochs or not done
                                                 or done > epochs):
            raise InputError(f"its training has ended ({ended}) with an average over {done} of {epochs} epochs")
        self.average, self.averaged_for, self.last = state.get("average"), epochs, state.get("last")
        self.done, self.ended = done, ended
