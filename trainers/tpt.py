"""TPT: Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", arXiv 2209.07511.

Learned: context vectors in front of the class names, for each test image anew; nothing is trained before the test. The
image and its augmented views are scored; the share SELECTION of them whose predictions have the least entropy is kept
(confidence selection), and the context is updated so that the entropy of their mean prediction becomes smaller. The
image alone is then predicted with that context, and the context begins anew.

As in the authors' code the image is one of its views and may be left out like any other, the choice of the first step
is kept for further ones, and AdamW's decay acts on the context, too.

The context starts as the words CTX_INIT. With MODEL.INIT_WEIGHTS, the checkpoint of a CoOp run, it starts as that run's
context (the paper's TPT + CoOp): the names of the tensors are the same, and so must be the number of vectors.
"""
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, check_availability
from prompting.towers import Towers
from trainers.coop import CoOpCLIP
from training import Batch, PromptTrainer

WITHOUT_AUGMIX = ("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")


def entropies(logits: Tensor) -> Tensor:
    """The entropy of each prediction, (V, n_cls) -> (V,)."""
    return -(logits.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """The entropy of the mean prediction; (V, n_cls) -> ()."""
    log_mean = logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))
    return -(log_mean.exp() * log_mean).sum()


@TRAINER_REGISTRY.register()
class TPT(PromptTrainer):
    model: CoOpCLIP
    trains = False
    learns_from_images = False
    adapts = True

    @property
    def test_views(self) -> int:  # type: ignore[override]  # a number of the config
        return self.node.VIEWS

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.TPT = CN()
        cfg.TRAINER.TPT.VIEWS = 63  # augmented views of a test image, beside the image itself
        cfg.TRAINER.TPT.SELECTION = 0.1  # share of image and views whose predictions are the surest: they are kept
        cfg.TRAINER.TPT.STEPS = 1  # updates per test image
        cfg.TRAINER.TPT.LR = 0.005  # of these updates
        cfg.TRAINER.TPT.WEIGHT_DECAY = 0.01  # of AdamW in these updates
        # whether the views go through AugMix: always, never, or auto: but for ImageNet and its variants
        cfg.TRAINER.TPT.AUGMIX = "auto"
        cfg.TRAINER.TPT.N_CTX = 4  # number of context vectors
        # words to start from; their number then is the number of context vectors
        cfg.TRAINER.TPT.CTX_INIT = "a photo of a"
        cfg.TRAINER.TPT.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        check_availability(node.AUGMIX, ("auto", "always", "never"), "TRAINER.TPT.AUGMIX")
        if node.VIEWS < 1 or node.STEPS < 1:
            raise InputError(f"TRAINER.TPT: VIEWS and STEPS must be at least 1, they are {node.VIEWS} and {node.STEPS}")
        if not node.LR > 0 or not node.WEIGHT_DECAY >= 0:
            raise InputError("TRAINER.TPT: LR must be above 0 and WEIGHT_DECAY at least 0, they are "
                             f"{node.LR} and {node.WEIGHT_DECAY}")
        if not 0 < node.SELECTION <= 1 or not int((node.VIEWS + 1) * node.SELECTION):
            raise InputError(f"TRAINER.TPT.SELECTION {node.SELECTION} keeps none of an image and its {node.VIEWS} "
                             f"views, or more than all; give {1 / (node.VIEWS + 1):.3g} to 1")

    @classmethod
    def view_transform(cls, cfg: Any) -> Callable[[Any], Tensor]:
        """That of training images, but bilinear, as torchvision crops where nothing else is said; with AugMix between
        the picture and the tensor."""
        from torchvision.transforms import ToTensor

        from dassl.data.transforms import FusedCompose, build_transform
        from dassl.data.transforms.augmix import AugMix

        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.INTERPOLATION = "bilinear"
        steps, node = build_transform(cfg).transforms, cls.node_of(cfg)
        if node.AUGMIX == "never" or node.AUGMIX == "auto" and cfg.DATASET.NAME in WITHOUT_AUGMIX:
            return FusedCompose(steps)
        whole = [isinstance(step, ToTensor) for step in steps].index(True)
        return FusedCompose([*steps[:whole], AugMix(FusedCompose(steps[whole:]))])

    def build_model(self, towers: Towers, classnames: list[str]) -> CoOpCLIP:
        return CoOpCLIP(towers, classnames, self.initial_context(towers), "end")

    def build_test_optimizer(self) -> Optimizer:
        return AdamW(self.trainables, lr=self.node.LR, weight_decay=self.node.WEIGHT_DECAY)

    def predict(self, batch: Batch) -> Tensor:
        with torch.no_grad():  # (1 + V, E): the image is the first of its views
            images = self.model.encode_images(torch.cat([batch["img"], batch["views"][0]]))
        chosen: Tensor | None = None
        for _ in range(self.node.STEPS):
            logits = self.model.logits(images if chosen is None else images[chosen], self.model.encode_classes())
            if chosen is None:
                chosen = self.surest(logits.detach())
                logits = logits[chosen]
            self.apply_gradients(self.gradients(marginal_entropy(logits), self.trainables))
        with torch.no_grad():
            return self.model.logits(images[:1], self.model.encode_classes())

    def surest(self, logits: Tensor) -> Tensor:
        """The places of the views that are kept, by entropy; (V, n_cls) -> (int(V SELECTION),)."""
        return entropies(logits).argsort(stable=True)[:int(len(logits) * self.node.SELECTION)]
