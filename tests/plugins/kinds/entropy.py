"""Test-time prompt tuning (Shu et al., arXiv 2209.07511), without training.

Learned, for each test image anew: a context of words in front of the class names. Of the image's views, the share KEEP
with the least entropy is kept; one update makes the entropy of their mean prediction smaller. The image itself is then
predicted with that context.
"""
import torch
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from trainers.coop import CoOpCLIP
from training import PromptTrainer


def entropy(probabilities):
    """(..., n_cls) -> (...,)"""
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum(dim=-1)


@TRAINER_REGISTRY.register()
class EntropyOverViews(PromptTrainer):
    trains = False
    learns_from_images = False
    adapts = True
    test_views = 8

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.ENTROPYOVERVIEWS = CN()
        cfg.TRAINER.ENTROPYOVERVIEWS.CTX_INIT = "a photo of a"  # what the context starts as
        cfg.TRAINER.ENTROPYOVERVIEWS.KEEP = 0.5  # share of the views that are kept
        cfg.TRAINER.ENTROPYOVERVIEWS.LR = 0.005  # of the update
        cfg.TRAINER.ENTROPYOVERVIEWS.PREC = "auto"  # fp32, amp, bf16, fp16 or auto

    def build_model(self, towers, classnames):
        return CoOpCLIP(towers, classnames, towers.text.embed_words(self.node.CTX_INIT), "end")

    def build_test_optimizer(self):
        return torch.optim.AdamW(self.trainables, lr=self.node.LR)

    def predict(self, batch):
        probabilities = self.model(batch["views"][0]).softmax(dim=-1)  # (V, n_cls), of the one image
        kept = entropy(probabilities).argsort()[:max(1, int(self.node.KEEP * len(probabilities)))]
        loss = entropy(probabilities[kept].mean(dim=0))
        self.apply_gradients(self.gradients(loss, self.trainables))
        return self.model(batch["img"])
