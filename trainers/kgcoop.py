"""KgCoOp: Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", arXiv 2303.13283.

Learned: CoOp's context. Loss: cross-entropy, and W times the distance of the learned class features from those of
hand-written prompts. The distance keeps what CLIP knows of classes that are not trained on.
"""
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.class_prompts import readable
from prompting.consistency import cosine_distance
from prompting.templates import kgcoop_template_of
from prompting.towers import Towers
from trainers.coop import CoOpCLIP
from training import Batch, PromptTrainer


@TRAINER_REGISTRY.register()
class KgCoOp(PromptTrainer):
    model: CoOpCLIP
    frozen_images = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.KGCOOP = CN()
        cfg.TRAINER.KGCOOP.N_CTX = 4  # number of context vectors
        # words to start from, whatever the dataset; "" for N_CTX random vectors
        cfg.TRAINER.KGCOOP.CTX_INIT = "a photo of a"
        cfg.TRAINER.KGCOOP.W = 8.0  # weight of the distance to the frozen class features
        cfg.TRAINER.KGCOOP.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        if not node.W >= 0:
            raise InputError(f"TRAINER.KGCOOP.W must not be negative, it is {node.W}")

    def build_model(self, towers: Towers, classnames: list[str]) -> CoOpCLIP:
        templates = self.frozen_templates(kgcoop_template_of(self.cfg.DATASET.NAME))
        self.frozen_text_features = towers.encode_classnames([readable(name) for name in classnames], templates)
        return CoOpCLIP(towers, classnames, self.initial_context(towers), "end")

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        text = self.model.class_features()
        logits = self.model.logits(self.model.encode_images(batch["img"]), text)
        loss = self.cross_entropy(logits, batch["label"])
        return loss + self.node.W * cosine_distance(text, self.frozen_text_features), logits
