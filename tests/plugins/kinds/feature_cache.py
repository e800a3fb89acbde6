"""A cache of confident test features (after TDA, Karmanov et al., arXiv 2403.18293), without training and gradients.

Kept of the test images so far, for each class: the SHOTS features that were assigned to it with the least entropy. The
logits of an image are those of the CLIP and, for each feature that is kept, ALPHA * exp(-BETA * (1 - cosine)) for its
class.
"""
import torch
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting import normalize
from prompting.model import FrozenCLIP
from prompting.templates import template_of
from training import PromptTrainer


@TRAINER_REGISTRY.register()
class FeatureCache(PromptTrainer):
    trains = False
    learns_from_images = False
    stateful = True  # so a batch has one image

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.FEATURECACHE = CN()
        cfg.TRAINER.FEATURECACHE.SHOTS = 3  # features that are kept for a class
        cfg.TRAINER.FEATURECACHE.ALPHA = 2.0  # weight of the cache
        cfg.TRAINER.FEATURECACHE.BETA = 5.0  # how fast it falls with the distance
        cfg.TRAINER.FEATURECACHE.PREC = "auto"  # fp32, amp, bf16, fp16 or auto

    def build_model(self, towers, classnames):
        self.cache = {}  # {class: [(entropy, feature (E,)), ...]}, the most certain first
        return FrozenCLIP(towers, classnames, self.frozen_templates(template_of(self.cfg.DATASET.NAME)))

    def predict(self, batch):
        feature = normalize(self.model.encode_images(batch["img"]))  # (1, E)
        logits = self.model.logits(feature, self.model.class_features())  # (1, n_cls)
        entropy = -(logits.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum().item()
        kept = self.cache.setdefault(logits.argmax().item(), [])
        kept.append((entropy, feature[0]))
        kept.sort(key=lambda pair: pair[0])
        del kept[self.node.SHOTS:]
        keys = torch.stack([key for kept in self.cache.values() for _, key in kept])  # (kept, E)
        labels = torch.tensor([label for label, kept in self.cache.items() for _ in kept], device=keys.device)
        near = (-self.node.BETA * (1 - feature @ keys.t())).exp()  # (1, kept)
        return logits + self.node.ALPHA * near @ F.one_hot(labels, logits.shape[1]).to(near.dtype)

    def extra_state(self):
        return {"cache": self.cache}

    def load_extra_state(self, state):
        self.cache = state["cache"]
