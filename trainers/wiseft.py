"""WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903.

Learned: every tensor of the image tower and a linear classifier that starts as zero-shot CLIP (trainers/finetune.py).
After the training each of them is mixed with what it was in zero-shot CLIP ("weight-space ensembles"), and the mixture
is what is evaluated, validated and stored for others to begin with:

    theta = (1 - ALPHA) theta_zero-shot + ALPHA theta_fine-tuned

over all tensors, the classifier's weight and bias included. The gradient is clipped to length 1 over all that is
trained: OPTIM.CLIP_GRAD_NORM. The zero-shot weights are those of the CLIP and stand in no checkpoint.

A class that was not trained has the zero-shot row of the classifier, on the mixed image tower: what that gives is not
published.
"""
import torch
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from trainers.finetune import FineTune, declare_fine_tuning


@TRAINER_REGISTRY.register()
class WiSEFT(FineTune):
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.WISEFT = CN()
        cfg.TRAINER.WISEFT.ALPHA = 0.5  # share of the fine-tuned weights in those that are evaluated, 0 to 1
        declare_fine_tuning(cfg.TRAINER.WISEFT, templates="all")

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if not 0 <= (alpha := self.node_of(cfg).ALPHA) <= 1:
            raise InputError(f"TRAINER.WISEFT.ALPHA {alpha}: it is the share of the fine-tuned weights; give a number "
                             "from 0 to 1")

    def zero_shot_weights(self) -> dict[str, Tensor]:
        """{name: tensor} of all that is trained, as zero-shot CLIP has it."""
        model, clip = self.model, dict(self.clip_model.named_parameters())
        heads = {"head.weight": model.zero_shot, "head.bias": torch.zeros_like(model.head.bias)}
        return {name: heads[name] if name in heads else clip[name.removeprefix("clip.")].detach().to(tensor)
                for name, tensor in self.trained_tensors().items()}

    def evaluated_weights(self) -> dict[str, Tensor] | None:
        alpha = self.node.ALPHA
        if alpha == 1:
            return None
        start = self.zero_shot_weights()
        return {name: (1 - alpha) * start[name] + alpha * tensor.detach()
                for name, tensor in self.trained_tensors().items()}
