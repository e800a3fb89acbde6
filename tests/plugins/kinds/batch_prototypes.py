"""Class prototypes that are refined over the images of a test batch: transductive, and nothing is trained.

The prototypes start as the class features. In each of STEPS steps every image of the batch is assigned to the classes
by the softmax of its logits; a prototype becomes the class feature, with the weight WORDS, plus the sum of the images
that are assigned to it.
"""
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting import normalize
from prompting.model import FrozenCLIP
from prompting.templates import template_of
from training import PromptTrainer


@TRAINER_REGISTRY.register()
class BatchPrototypes(PromptTrainer):
    trains = False
    learns_from_images = False
    transductive = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.BATCHPROTOTYPES = CN()
        cfg.TRAINER.BATCHPROTOTYPES.STEPS = 3  # how often the images are assigned
        cfg.TRAINER.BATCHPROTOTYPES.WORDS = 10.0  # weight of a class feature, in images
        cfg.TRAINER.BATCHPROTOTYPES.PREC = "auto"  # fp32, amp, bf16, fp16 or auto

    def build_model(self, towers, classnames):
        return FrozenCLIP(towers, classnames, self.frozen_templates(template_of(self.cfg.DATASET.NAME)))

    def predict(self, batch):
        images = normalize(self.model.encode_images(batch["img"]))  # (B, E)
        words = normalize(self.model.class_features())  # (n_cls, E)
        prototypes = words
        for _ in range(self.node.STEPS):
            shares = self.model.logits(images, prototypes).softmax(dim=-1)  # (B, n_cls)
            prototypes = normalize(self.node.WORDS * words + shares.t() @ images)
        return self.model.logits(images, prototypes)
