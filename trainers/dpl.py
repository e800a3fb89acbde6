"""DPL: Zhang et al., "Amortized Prompt: Lightweight Fine-Tuning for CLIP in Domain Generalization" (Domain Prompt
Learning), arXiv 2111.12853.

Learned: a network that makes of images a prompt for their domain, N_DOMAIN_TOKENS vectors in front of the class names.
The prompt of a domain is the mean of what the network gives for the frozen features of its images, the same for all
classes. Towers are frozen; the gradient reaches the network through the text tower. In a test the prompt is that of the
whole test batch: an answer depends on the images that share the batch, so test images are shuffled.

Two readings of the loss, TRAINER.DPL.TARGETS. `released`: as the authors' code computes it, cross-entropy over the
classes with the prompts of all domains (domains x classes columns), where the target of every image is its class with
the *first* domain's prompt, the domain of the smallest number; the images of the other domains are pushed away from
their own prompts. `own`: the images of each domain are scored against their own prompts alone. With one domain the two
are the same.
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, check_availability
from prompting.class_prompts import ClassPrompts
from prompting.model import PromptedCLIP
from prompting.towers import Towers
from training import Batch, PromptTrainer


class MLP(nn.Module):
    """(B, inputs) -> (B, outputs): a linear layer, depth - 2 of them from width to width, and a last one; dropout and
    ReLU behind all but the last. Weights start Xavier uniform, biases at 0.01."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.dropout = nn.Dropout(dropout)
        self.hiddens = nn.ModuleList([nn.Linear(width, width) for _ in range(depth - 2)])
        self.output = nn.Linear(width, outputs)
        for layer in (self.input, *self.hiddens, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.input, *self.hiddens):
            x = self.dropout(layer(x)).relu()
        out: Tensor = self.output(x)
        return out


class DomainPromptedCLIP(PromptedCLIP):
    """A CLIP whose prompts are made of images.

    Args:
        towers: prompting.Towers.
        classnames: n_cls names.
        n_tokens: vectors of a domain's prompt.
        width, depth, dropout: of the network.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], n_tokens: int, width: int, depth: int,
                 dropout: float) -> None:
        super().__init__(towers)
        self.network = MLP(towers.embed_dim, n_tokens * towers.text.width, width, depth, dropout)
        self.class_prompts = ClassPrompts(towers.text, classnames, n_tokens)

    def domain_features(self, features: Tensor, sizes: Sequence[int]) -> Tensor:
        """Class features with the prompt of each domain, in one pass.

        Args:
            features: of images, not normalised, one domain after the other, (B, E).
            sizes: how many images each of G domains has.
        Returns:
            (G, n_cls, E), not normalised.
        """
        tokens = self.network(features.float()).float().split(list(sizes))
        prompts = torch.stack([of_domain.mean(dim=0) for of_domain in tokens])
        ctx = prompts.view(len(sizes), self.class_prompts.n_ctx, self.towers.text.width)
        return self.towers.text.encode(self.class_prompts(ctx))

    def forward(self, images: Tensor) -> Tensor:
        features = self.encode_images(images)
        return self.logits(features, self.domain_features(features, [len(features)])[0])


@TRAINER_REGISTRY.register()
class DPL(PromptTrainer):
    model: DomainPromptedCLIP
    frozen_images = True
    transductive = True
    sampler = "SeqDomainSampler"  # of several source domains

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.DPL = CN()
        cfg.TRAINER.DPL.N_DOMAIN_TOKENS = 16  # vectors of a domain's prompt
        cfg.TRAINER.DPL.MLP_WIDTH = 512  # of the network that makes the prompt
        cfg.TRAINER.DPL.MLP_DEPTH = 3  # linear layers of it
        cfg.TRAINER.DPL.MLP_DROPOUT = 0.1  # share of its numbers that are dropped in training
        # whose prompts are an image's target: released (the first domain's, as the authors' code), or own
        cfg.TRAINER.DPL.TARGETS = "released"
        cfg.TRAINER.DPL.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        check_availability(node.TARGETS, ("released", "own"), "TRAINER.DPL.TARGETS")
        if node.N_DOMAIN_TOKENS < 1 or node.MLP_WIDTH < 1 or node.MLP_DEPTH < 2:
            raise InputError("TRAINER.DPL: N_DOMAIN_TOKENS and MLP_WIDTH must be at least 1 and MLP_DEPTH at least 2, "
                             f"they are {node.N_DOMAIN_TOKENS}, {node.MLP_WIDTH} and {node.MLP_DEPTH}")
        if not 0 <= node.MLP_DROPOUT < 1:
            raise InputError(f"TRAINER.DPL.MLP_DROPOUT must be 0 or more and below 1, not {node.MLP_DROPOUT}")

    @classmethod
    def complete_cfg(cls, cfg):
        """As many images of each source domain in a batch, where there are several; and no test batch of few classes,
        which its prompt would tell."""
        if len(cfg.DATASET.SOURCE_DOMAINS) > 1:
            super().complete_cfg(cfg)
        if cfg.DATALOADER.TEST.SAMPLER == "SequentialSampler":
            cfg.DATALOADER.TEST.SAMPLER = "RandomSampler"

    def build_model(self, towers: Towers, classnames: list[str]) -> DomainPromptedCLIP:
        node = self.node
        return DomainPromptedCLIP(towers, classnames, node.N_DOMAIN_TOKENS, node.MLP_WIDTH, node.MLP_DEPTH,
                                  node.MLP_DROPOUT)

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits are (B, G n_cls), column g n_cls + c: class c with the prompt of domain g; with `own` targets
        (B, n_cls), those of each image's own domain."""
        _, order = batch["domain"].sort(stable=True)
        _, domains, sizes = batch["domain"].unique(return_inverse=True, return_counts=True)  # ascending
        features = self.model.encode_images(batch["img"])
        text = self.model.domain_features(features[order], sizes.tolist())
        logits = self.model.logits(features, text.flatten(0, 1))
        if self.node.TARGETS == "own":
            rows = torch.arange(len(logits), device=logits.device)
            logits = logits.view(len(logits), *text.shape[:2])[rows, domains]
        return self.cross_entropy(logits, batch["label"]), logits
