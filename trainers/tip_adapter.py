"""Tip-Adapter and Tip-Adapter-F: Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot
Classification", arXiv 2207.09519.

A cache of the few-shot images: their features are the keys, their labels the values. The logits of an image are the sum
of zero-shot CLIP's logits and those of the cache. Tip-Adapter learns nothing, Tip-Adapter-F starts from it. Learned:
the keys of the cache. The sharpness beta and the weight alpha of the cache are searched on validation images, on which
Tip-Adapter-F's best epoch is chosen, too. Test images are used for neither.
"""
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import require_finite
from dassl.optim import StepSchedule, build_optimizer
from dassl.utils import InputError
from dassl.utils.stored import alike, require_like
from prompting.cache import CacheCLIP
from prompting.templates import cache_templates_of
from prompting.towers import Towers, normalize
from training import FrozenFeatures, PromptTrainer

ADAMW_EPS = 1e-4  # of the authors' AdamW; torch's is 1e-8


@TRAINER_REGISTRY.register()
class TipAdapter(FrozenFeatures):
    """Nothing is stored: each run fills its cache again, from its training images."""

    model: CacheCLIP
    trains = False
    frozen_images = True

    @classmethod
    def class_bound(cls, cfg):
        return True

    @classmethod
    def extend_cfg(cls, cfg):
        node = cfg.TRAINER[cls.__name__.upper()] = CN()
        node.BETA = 5.5  # sharpness of the cache, to start with; Tip-Adapter-F is trained at it
        node.ALPHA = 1.17  # weight of the cache, to start with; Tip-Adapter-F is trained at it
        node.SEARCH_SCALE = (7.0, 3.0)  # beta and alpha are searched from 0.1 up to these numbers
        node.SEARCH_STEP = (200, 20)  # steps of the searches for beta and alpha
        node.AUGMENT_EPOCH = 10  # augmentations whose features are averaged into a key
        node.TEMPLATES = ()  # prompts to use instead of the dataset's
        node.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        name = f"TRAINER.{type(self).__name__.upper()}"
        node = self.node_of(cfg)
        if node.AUGMENT_EPOCH < 1:
            raise InputError(f"{name}.AUGMENT_EPOCH must be at least 1, not {node.AUGMENT_EPOCH}")
        if len(node.SEARCH_SCALE) != 2 or len(node.SEARCH_STEP) != 2 or min(node.SEARCH_STEP) < 1:
            raise InputError(f"{name}: SEARCH_SCALE and SEARCH_STEP are two numbers each, for beta and alpha, and the "
                             "steps at least 1")

    def build_model(self, towers: Towers, classnames: list[str]) -> CacheCLIP:
        node = self.node
        templates = list(node.TEMPLATES) or self.frozen_templates(*cache_templates_of(self.cfg.DATASET.NAME))
        labels = [item.label for item in self.dm.dataset.train_x]
        model = CacheCLIP(towers, classnames, templates, labels, node.BETA, node.ALPHA)
        model.adapter.requires_grad_(self.trains)
        return model

    def before_train(self):
        super().before_train()
        self.fill_cache()
        self.search()

    def load_model(self, directory, epoch=None):
        self.fill_cache()
        self.search()

    def fill_cache(self):
        """The key of an image is the mean of its features over the augmentations, scaled to length 1."""
        passes = [self.image_features(self.few_shot_batches(number))[0] for number in range(self.node.AUGMENT_EPOCH)]
        self.model.adapter.weight.data.copy_(normalize(torch.stack(passes).mean(dim=0)))

    def search(self):
        """Choose beta and alpha by validation accuracy."""
        if self.validation is not None:
            accuracy = self.model.search(*self.validation, self.node.SEARCH_SCALE, self.node.SEARCH_STEP)
            print(f"Searched on {len(self.validation[1])} validation images: beta {self.model.beta:.3f}, "
                  f"alpha {self.model.alpha:.3f}, accuracy {100 * accuracy:.2f} %")


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    trains = True
    static_step = True
    frozen_images = True
    best_accuracy = -1.0
    best_keys: Tensor | None = None  # (N, E): those of the best epoch so far
    last_keys: Tensor | None = None  # at the end of a training: those of its last epoch

    def build_optimizers(self) -> list[tuple[Optimizer, LRScheduler]]:
        """AdamW (by the config); its rate falls to 0 along a cosine, per step and not per epoch."""
        optim = build_optimizer(self.trainables, self.cfg.OPTIM)
        for group in optim.param_groups:
            if "eps" in group:
                group["eps"] = ADAMW_EPS
        return [(optim, StepSchedule(optim, self.planned_steps))]

    def before_train(self):
        PromptTrainer.before_train(self)
        if not (self.start_epoch or self.first_batch):
            self.fill_cache()
        if self.went_on_from_finished and self.start_epoch < self.max_epoch and self.last_keys is not None:
            self.model.adapter.weight.data.copy_(self.last_keys)  # what the best epoch's had taken the place of
            self.model.beta, self.model.alpha = self.node.BETA, self.node.ALPHA

    def load_model(self, directory, epoch=None):
        PromptTrainer.load_model(self, directory, epoch)

    def after_epoch(self):
        self.last_keys = None
        self.keep_best()
        if self.epoch + 1 == self.max_epoch:
            self.finish()
        super().after_epoch()

    def finish(self) -> None:
        """Take the keys of the best epoch, and search beta and alpha for them."""
        assert self.best_keys is not None  # an epoch has ended
        self.last_keys = self.model.adapter.weight.detach().clone()
        self.model.adapter.weight.data.copy_(self.best_keys)
        self.search()

    @torch.no_grad()
    def keep_best(self):
        """Keep the keys of the best epoch so far, by validation accuracy; of the last without validation images."""
        accuracy = self.best_accuracy
        if self.validation is not None:
            features, labels = self.validation
            logits = self.model.logits(features, self.model.encode_classes())
            require_finite(logits, [item.impath for item in self.dm.dataset.val])
            accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
        if self.validation is None or accuracy > self.best_accuracy:
            self.best_accuracy, self.best_keys = accuracy, self.model.adapter.weight.detach().clone()

    def extra_state(self) -> dict[str, Any]:
        return {"values": self.model.values.cpu(), "beta": self.model.beta, "alpha": self.model.alpha,
                "best_accuracy": self.best_accuracy, "best_keys": self.best_keys, "last_keys": self.last_keys}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        own = {"values": self.model.values} | dict.fromkeys(("best_keys", "last_keys"), self.model.adapter.weight)
        held = {name: state.get(name) for name in own if name == "values" or state.get(name) is not None}
        require_like(held, {name: own[name] for name in held}, "its cache")
        if not all(alike(1.0, state[name]) for name in ("beta", "alpha", "best_accuracy")):
            raise InputError("beta, alpha or the best accuracy is no number")
        self.model.values.copy_(state["values"])
        self.model.beta, self.model.alpha = state["beta"], state["alpha"]
        self.best_accuracy, self.best_keys = state["best_accuracy"], state["best_keys"]
        self.last_keys = state.get("last_keys")
