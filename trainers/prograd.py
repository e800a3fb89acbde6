"""ProGrad: Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", arXiv 2205.14865.

Learned: CoOp's context. A step follows the gradient of the cross-entropy (the domain gradient), without the part of it
that goes against the general direction: the gradient of the divergence from zero-shot CLIP's predictions.
"""
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.class_prompts import readable
from prompting.templates import leading_template_of, leading_words
from prompting.towers import Towers
from trainers.coop import CoOpCLIP
from training import Batch, PromptTrainer

# A general gradient that is shorter than this, relative to the domain gradient, is a rounding error: no direction.
# At the start, where the exact gradient is 0, 2e-7 was measured in float32, 2e-3 in float16 and 4e-4 in bfloat16; one
# step later 2e-2 and more.
ROUNDING = {torch.float32: 16 * torch.finfo(torch.float32).eps, torch.float16: 2.0 ** -8, torch.bfloat16: 2.0 ** -8}


def without_conflict(domain: Tensor, general: Tensor, weight: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The domain gradient, less `weight` times its part along the general direction where they disagree.

    A context that starts as the zero-shot prompt agrees with zero-shot CLIP and has no general direction yet. The
    direction of its rounding error, which differs with the number of threads, is not used.

    Args:
        domain, general: gradients of one tensor, any shape.
        weight: 1 removes all of the part that goes against the general direction, 0 nothing.
        dtype: what the gradients were computed in.
    """
    length = general.norm()
    direction = general.flatten() / length.clamp_min(torch.finfo(general.dtype).tiny) * (
        length > ROUNDING[dtype] * domain.norm())
    along = domain.flatten() @ direction
    return domain - weight * along.clamp(max=0) * direction.view_as(domain)


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 CE(softmax(teacher / T), logits / T), mean over the batch; both (B, n_cls). Its gradient is that of the KL
    divergence."""
    return F.cross_entropy(logits / temperature, F.softmax(teacher / temperature, dim=-1)) * temperature ** 2


@TRAINER_REGISTRY.register()
class ProGrad(PromptTrainer):
    model: CoOpCLIP
    frozen_images = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.PROGRAD = CN()
        cfg.TRAINER.PROGRAD.N_CTX = 16  # number of context vectors
        cfg.TRAINER.PROGRAD.TEMPLATE_INIT = False  # the last vectors start as the dataset's template, the rest as 0
        cfg.TRAINER.PROGRAD.LAMBDA = 1.0  # how much of a conflicting gradient is taken out
        cfg.TRAINER.PROGRAD.T = 1.0  # temperature of the divergence
        cfg.TRAINER.PROGRAD.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        if not node.LAMBDA >= 0 or not node.T > 0:
            raise InputError("TRAINER.PROGRAD: LAMBDA must not be negative and T must be positive, they are "
                             f"{node.LAMBDA} and {node.T}")

    def build_model(self, towers: Towers, classnames: list[str]) -> CoOpCLIP:
        templates = self.frozen_templates(leading_template_of(self.cfg.DATASET.NAME))
        self.frozen_text_features = towers.encode_classnames([readable(name) for name in classnames], templates)
        ctx = self.initial_context(towers)
        if self.node.TEMPLATE_INIT:
            starts = [(leading, template) for template in templates if (leading := leading_words(template))]
            if not starts:
                raise InputError("TRAINER.PROGRAD.TEMPLATE_INIT starts from the words before the class name, and none "
                                 f"of DATASET.TEMPLATES ({', '.join(templates)}) has all its words there; add one, or "
                                 "leave TEMPLATE_INIT off")
            leading, template = starts[0]
            words = towers.text.embed_words(leading)
            if len(words) > len(ctx):
                raise InputError(f"TRAINER.PROGRAD.N_CTX is {len(ctx)}, but the template '{template}' has {len(words)} "
                                 "words to start from; raise it")
            ctx = torch.cat([torch.zeros_like(ctx[len(words):]), words.cpu()])
        return CoOpCLIP(towers, classnames, ctx, "end")

    def training_step(self, batch: Batch) -> Mapping[str, float | Tensor]:
        images, label = self.model.encode_images(batch["img"]), batch["label"]
        logits = self.model.logits(images, self.model.class_features())
        teacher = self.towers.cosine_logits(images, self.frozen_text_features)

        loss = self.cross_entropy(logits, label)
        divergence = soft_cross_entropy(logits, teacher, self.node.T)
        domain = self.gradients(loss, self.trainables, retain_graph=True)
        general = self.gradients(divergence, self.trainables)
        agreement = F.cosine_similarity(domain[0].flatten(), general[0].flatten(), dim=0)
        summary = {"loss": loss.detach(), "divergence": divergence.detach(), "agreement": agreement,
                   "acc": self.batch_accuracy(logits, label)}
        self.apply_gradients([without_conflict(a, b, self.node.LAMBDA, self.precision.dtype)
                              for a, b in zip(domain, general)])
        return summary
