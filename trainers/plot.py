"""PLOT: Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", arXiv 2210.01253.

Learned: several contexts, each a prompt of every class. An image is its patch tokens, a class its N prompts; the logit
of a class is the cosine similarity of the two sets under the optimal transport between them (prompting/transport.py),
which is held fixed for the gradient. Loss: cross-entropy.

The authors' code for this form of PLOT runs on ResNet-50, whose attention pooling gives 49 local features; PLOT++
(trainers/plotpp.py) is their form for a ViT. Here the local features are a ViT's patch tokens, each read out as the
class token is: by the last norm and the projection. As in their code, on ImageNet itself the logits of the class token
and of the mean text feature are added (POOLED_ON), and the transport's stopping rule looks at a whole batch, also in an
evaluation: hence `transductive`. It is no part of the idea and does little: after tiny.yaml's training on Shapes the
logits of 200 test images, of standard deviation 2.4, were up to 0.0015 others when each image was alone, and no answer
was another.
"""
from collections.abc import Sequence

from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.class_prompts import ClassPrompts
from prompting.model import Prompt, random_vectors
from prompting.towers import Towers
from prompting.transport import TransportCLIP
from training import PromptTrainer


class PatchTransportCLIP(TransportCLIP):
    """Patch tokens against N prompts per class.

    Args:
        towers: prompting.Towers of a ViT.
        classnames: n_cls names.
        ctx: what the contexts start as, (N, n_ctx, W).
        pooled: whether the cosine of the class token and the mean text feature is added.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], ctx: Tensor, pooled: bool) -> None:
        super().__init__(towers)
        self.prompt_learner, self.pooled = Prompt(ctx), pooled
        self.class_prompts = ClassPrompts(towers.text, classnames, ctx.shape[1])

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the features of the class token and the patch tokens, (B, 1 + patches, E)."""
        return self.towers.encode_image_tokens(images)

    def encode_classes(self) -> Tensor:
        """-> (N, n_cls, E), not normalised."""
        return self.towers.text.encode(self.class_prompts(self.prompt_learner.ctx))

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        logits = self.transported(image_features[:, 1:], class_features)
        if self.pooled:
            logits = logits + self.towers.cosine_logits(image_features[:, 0], class_features.mean(dim=0))
        return logits


@TRAINER_REGISTRY.register()
class PLOT(PromptTrainer):
    image_tokens = True
    transductive = True  # by the number of rounds of the transport, which the images of a batch share

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.PLOT = CN()
        cfg.TRAINER.PLOT.N = 4  # number of prompts per class
        cfg.TRAINER.PLOT.N_CTX = 16  # number of context vectors of each
        # datasets on which the logits of the class token and of the mean text feature are added
        cfg.TRAINER.PLOT.POOLED_ON = ("ImageNet",)
        cfg.TRAINER.PLOT.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        if min(node.N, node.N_CTX) < 1:
            raise InputError(f"TRAINER.PLOT: N and N_CTX must be at least 1, they are {node.N} and {node.N_CTX}")

    def build_model(self, towers: Towers, classnames: list[str]) -> PatchTransportCLIP:
        node = self.node
        ctx = random_vectors(node.N, node.N_CTX, towers.text.width)
        return PatchTransportCLIP(towers, classnames, ctx, self.cfg.DATASET.NAME in node.POOLED_ON)
