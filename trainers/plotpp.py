"""PLOT++: the form for a ViT of PLOT, Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language
Models", arXiv 2210.01253, as its authors' repository has it (CHENGY12/PLOT, folder plot-pp).

Learned: several contexts of the text prompts, and several sets of visual prompts. Each set makes a pass of its own
through the image tower, so an image has M features; a class has N, one for each of its prompts. The logit is their
cosine similarity under the optimal transport between them (prompting/transport.py), which is held fixed for the
gradient. With TRADE_OFF the cosine of the two mean features is added. Loss: cross-entropy. As in PLOT the images of a
batch share the number of the transport's rounds (`transductive`).

The authors train in two stages. MODEL_UPD vision: the visual prompts alone, with TRADE_OFF, while the text prompts stay
at their words. MODEL_UPD joint: both, beginning with the first stage's visual prompts (MODEL.INIT_WEIGHTS); the words
of the text prompts are not in its checkpoint, and need not be.

Prompt n starts from words of its own, which the authors give for each dataset (STARTS). As many vectors are learned as
the first start has words; what a longer one has more stays fixed between them and the class name. A shorter one has its
last word once more. (The authors have one such, ImageNet's third: their fourth vector stands where the name's first
token belongs, which is lost. That is not followed.) Datasets for which the authors give no words have those of
Caltech101. A run on several datasets whose starts differ in length, such as `xd`, needs one list for all: give STARTS.
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, check_availability
from prompting.class_prompts import ClassPrompts
from prompting.model import random_vectors
from prompting.templates import transport_starts_of
from prompting.text import tokenizer
from prompting.towers import Towers
from prompting.transport import TransportCLIP
from training import PromptTrainer


class PromptSets(nn.Module):
    """The vectors of the text prompts, `ctx` (N, n_ctx, W), if they are learned, and those of the visual prompts,
    `ctx_vision` (M, n, W')."""

    def __init__(self, ctx: Tensor | None, ctx_vision: Tensor) -> None:
        super().__init__()
        if ctx is not None:
            self.ctx = nn.Parameter(ctx.clone())
        self.ctx_vision = nn.Parameter(ctx_vision.clone())


class PromptTransportCLIP(TransportCLIP):
    """M sets of visual prompts against N prompts per class.

    Args:
        towers: prompting.Towers of a ViT.
        classnames: n_cls names.
        starts: the words that each of the N text prompts starts from.
        ctx_vision: what the visual prompts start as, (M, n, W').
        learns_text: whether the text prompts are learned, or stay at their words.
        pooled: whether the cosine of the two mean features is added.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], starts: Sequence[str], ctx_vision: Tensor,
                 learns_text: bool, pooled: bool) -> None:
        super().__init__(towers)
        self.image_tower, self.pooled = towers.promptable_image("PLOTPP"), pooled
        words = [towers.text.embed_words(start) for start in starts]
        n_ctx = len(words[0])
        ctx = torch.stack([torch.cat([own, own[-1:].expand(n_ctx, -1)])[:n_ctx] for own in words])
        self.prompt_learner = PromptSets(ctx if learns_text else None, ctx_vision)
        # Prompts with the same fixed words go through the tower together: (their numbers, the prompts).
        fixed = [tokenizer.decode(tokenizer.encode(start)[n_ctx:]).strip() for start in starts]
        groups = {between: [n for n, own in enumerate(fixed) if own == between] for between in fixed}
        self.class_prompts = [(torch.tensor(numbers, device=towers.device),
                               ClassPrompts(towers.text, classnames, n_ctx, between=between))
                              for between, numbers in groups.items()]
        self.frozen_text_features: Tensor | None = None if learns_text else self.encode_text(ctx)

    def encode_text(self, ctx: Tensor) -> Tensor:
        """Contexts (N, n_ctx, W) -> (N, n_cls, E), not normalised."""
        encoded = [self.towers.text.encode(prompts(ctx[numbers])) for numbers, prompts in self.class_prompts]
        return torch.cat(encoded)[torch.cat([numbers for numbers, _ in self.class_prompts]).argsort()]

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, E), not normalised."""
        embedded, prompts = self.image_tower.embed(images), self.prompt_learner.ctx_vision
        b, m = len(embedded), len(prompts)
        features = self.image_tower.encode(embedded.repeat_interleave(m, dim=0), [prompts.repeat(b, 1, 1)])
        return features.view(b, m, -1)

    def encode_classes(self) -> Tensor:
        """-> (N, n_cls, E), not normalised."""
        if self.frozen_text_features is not None:
            return self.frozen_text_features
        return self.encode_text(self.prompt_learner.ctx)

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        logits = self.transported(image_features, class_features)
        if self.pooled:
            logits = logits + self.towers.cosine_logits(image_features.mean(dim=1), class_features.mean(dim=0))
        return logits


@TRAINER_REGISTRY.register()
class PLOTPP(PromptTrainer):
    transductive = True  # as PLOT

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.PLOTPP = CN()
        cfg.TRAINER.PLOTPP.N = 4  # number of text prompts per class: the first N of the starts
        cfg.TRAINER.PLOTPP.M = 4  # number of sets of visual prompts
        cfg.TRAINER.PLOTPP.N_CTX_V = 2  # visual prompt tokens of each set
        cfg.TRAINER.PLOTPP.STARTS = ()  # the words that the text prompts start from, instead of the dataset's
        # what is learned: joint (text and visual prompts) or vision (the visual ones, the first of two stages)
        cfg.TRAINER.PLOTPP.MODEL_UPD = "joint"
        cfg.TRAINER.PLOTPP.TRADE_OFF = False  # add the cosine of the mean features, as in the first stage
        cfg.TRAINER.PLOTPP.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def starts(self, cfg) -> tuple[str, ...]:
        """The words that the text prompts may start from."""
        return tuple(self.node_of(cfg).STARTS) or transport_starts_of(cfg.DATASET.NAME)

    def check_cfg(self, cfg):
        node, starts = self.node_of(cfg), self.starts(cfg)
        check_availability(node.MODEL_UPD, ("joint", "vision"), "TRAINER.PLOTPP.MODEL_UPD")
        if not all(isinstance(start, str) and start.strip() for start in starts):
            raise InputError(f"TRAINER.PLOTPP.STARTS is a list of texts with words, not {list(starts)}")
        if min(node.M, node.N_CTX_V) < 1:
            raise InputError(f"TRAINER.PLOTPP: M and N_CTX_V must be at least 1, they are {node.M} and {node.N_CTX_V}")
        if not 1 <= node.N <= len(starts):
            raise InputError(f"TRAINER.PLOTPP.N must be 1 to {len(starts)}, the number of starts, it is {node.N}; more "
                             "need as many texts in TRAINER.PLOTPP.STARTS")

    def build_model(self, towers: Towers, classnames: list[str]) -> PromptTransportCLIP:
        node = self.node
        ctx_vision = random_vectors(node.M, node.N_CTX_V, towers.promptable_image("PLOTPP").width)
        return PromptTransportCLIP(towers, classnames, self.starts(self.cfg)[:node.N], ctx_vision,
                                   node.MODEL_UPD == "joint", node.TRADE_OFF)
