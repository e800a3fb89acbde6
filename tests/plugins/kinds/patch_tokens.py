"""A learned context whose classes are compared with the patches of an image, too.

Learned: context vectors in front of the class names. The logit of a class is the mean of two: that of the class token,
and that of the patches, each weighted by how well it fits the class (softmax over the patches).
"""
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from trainers.coop import CoOpCLIP
from training import PromptTrainer


class PatchCLIP(CoOpCLIP):
    def forward(self, images):
        tokens = self.towers.encode_image_tokens(images)  # (B, 1 + patches, E)
        logits = self.logits(tokens, self.class_features())  # (B, 1 + patches, n_cls)
        whole, patches = logits[:, 0], logits[:, 1:]
        return (whole + (patches.softmax(dim=1) * patches).sum(dim=1)) / 2


@TRAINER_REGISTRY.register()
class PatchAttention(PromptTrainer):
    image_tokens = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.PATCHATTENTION = CN()
        cfg.TRAINER.PATCHATTENTION.CTX_INIT = "a photo of a"  # words to start from
        cfg.TRAINER.PATCHATTENTION.N_CTX = 4  # how many vectors they are
        cfg.TRAINER.PATCHATTENTION.PREC = "auto"  # fp32, amp, bf16, fp16 or auto

    def build_model(self, towers, classnames):
        return PatchCLIP(towers, classnames, self.initial_context(towers), "end")
