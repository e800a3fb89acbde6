"""ProMetaR: Park et al., "Prompt Learning via Meta-Regularization", arXiv 2404.00851.

Learned: independent prompts of both towers, and networks that gate the gradient of the regulariser. With R the distance
to the frozen features (PromptSRC's, of each tower to its own prompts), a prompt's gradient is

    g = grad CE + sigmoid(net([grad CE; grad R])) * grad R

Each batch makes two updates. The first is a step with g on the whole batch. The second is an episode: one class is the
query and the other classes are the support. The prompts take an inner step with g on the support; then prompts and
networks are updated to lower the loss of the query, mixed with support images (task augmentation), after that step.
"""
import contextlib
import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import InputError
from prompting.blocks import differentiable_attention
from prompting.consistency import diverse_text_features, l1_distance
from prompting.deep import IndependentCLIP
from prompting.templates import IMAGENET_FIRST_60
from prompting.towers import Towers
from trainers.ivlp import IVLP, independent_prompts_cfg
from training import Batch


class GradientGate(nn.Module):
    """One network per depth, which weighs the regulariser's gradient of prompts (J, n, W) by values in (0, 1), one per
    `rate` entries. It has two linear layers without an activation between them, as in the authors' code."""

    def __init__(self, depth: int, size: int, rate: int) -> None:
        super().__init__()
        self.rate, hidden = rate, size // rate
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(2 * size, hidden, bias=False),
                                                nn.Linear(hidden, hidden, bias=False)) for _ in range(depth))

    def forward(self, task: Tensor, regulariser: Tensor) -> Tensor:
        """The two gradients (J, n, W) -> the regularised gradient, (J, n, W)."""
        both = torch.cat([task.flatten(1), regulariser.flatten(1)], dim=1)  # (J, 2 n W)
        with torch.autocast(both.device.type, enabled=False):  # gradients vanish in half precision
            values = torch.stack([net(row) for net, row in zip(self.nets, both)]).sigmoid()
        return task + values.repeat_interleave(self.rate, dim=1).view_as(regulariser) * regulariser


@TRAINER_REGISTRY.register()
class ProMetaR(IVLP):
    model: IndependentCLIP
    frozen_features = True
    min_batch = 2  # a query and a support image
    trains_in_turns = True  # a batch of one class trains the prompts only
    templates_taken = True  # in training

    @staticmethod
    def extend_cfg(cfg):
        node = cfg.TRAINER.PROMETAR = independent_prompts_cfg(n_ctx=4)
        node.TEXT_LOSS_WEIGHT = 50.0  # weight of the regulariser of the class features
        node.IMAGE_LOSS_WEIGHT = 20.0  # weight of the regulariser of the image features
        node.ADAPT_LR = 0.0005  # rate of the inner step
        node.LR_RATIO = 0.0005  # weight of the query's loss
        node.ORDER = 2  # order of the meta-gradient: 1 or 2
        node.MIXUP_ALPHA = 0.5  # the mixing ratio is drawn from Beta(MIXUP_ALPHA, MIXUP_BETA)
        node.MIXUP_BETA = 0.5  # the mixing ratio is drawn from Beta(MIXUP_ALPHA, MIXUP_BETA)
        node.DIM_RATE = 8  # entries of a gradient that share a gate
        node.VNET_LR = 1e-6  # rate of the gates' networks, constant
        node.VNET_WEIGHT_DECAY = 5e-4  # weight decay of the gates' networks

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        if node.ORDER not in (1, 2):
            raise InputError(f"TRAINER.PROMETAR.ORDER is 1 or 2, not {node.ORDER}")
        if not min(node.MIXUP_ALPHA, node.MIXUP_BETA) > 0:
            raise InputError("TRAINER.PROMETAR.MIXUP_ALPHA and MIXUP_BETA must be positive")

    def build_model(self, towers: Towers, classnames: list[str]) -> IndependentCLIP:
        model, rate = super().build_model(towers, classnames), self.node.DIM_RATE
        # All pairs below are of text and image, too.
        self.trained_prompts = [model.prompt_learner.ctx, model.vision_prompt_learner.ctx]
        sizes = [ctx[0].numel() for ctx in self.trained_prompts]
        if rate < 1 or any(size % rate for size in sizes):
            raise InputError(f"TRAINER.PROMETAR.DIM_RATE must divide the {sizes[0]} and {sizes[1]} numbers that the "
                             f"prompts of a block have; it is {rate}")
        self.gates = nn.ModuleList(GradientGate(len(ctx), ctx[0].numel(), rate) for ctx in self.trained_prompts)
        model.vnet = self.gates
        return model

    def build_optimizers(self) -> list[tuple[Optimizer, LRScheduler]]:
        """One optimizer for the prompts, and one with a constant rate for the networks (the authors' schedule of that
        rate never steps)."""
        for_prompts = build_optimizer(self.trained_prompts, self.cfg.OPTIM)
        settings = self.cfg.OPTIM.clone()
        settings.defrost()
        settings.LR, settings.WEIGHT_DECAY = self.node.VNET_LR, self.node.VNET_WEIGHT_DECAY
        self.for_gates = build_optimizer(self.gates.parameters(), settings)
        constant = torch.optim.lr_scheduler.ConstantLR(self.for_gates, factor=1.0)
        return [(for_prompts, build_lr_scheduler(for_prompts, self.cfg.OPTIM)), (self.for_gates, constant)]

    @functools.cached_property
    def frozen_text_features(self) -> Tensor:
        """(n_cls, E); only training needs them."""
        return diverse_text_features(self.towers, self.dm.dataset.classnames,
                                     self.frozen_templates(*IMAGENET_FIRST_60))

    def training_step(self, batch: Batch) -> Mapping[str, float | Tensor]:
        label, frozen = batch["label"], batch["frozen"]
        embedded = self.model.image_tower.embed(batch["img"])

        # The whole batch.
        gradients, loss, logits = self.regularised_gradients(embedded, frozen, label)
        summary = {"loss": loss.detach(), "acc": self.batch_accuracy(logits, label)}
        self.apply_gradients([gradient.detach() for gradient in gradients], self.trained_prompts)
        if len(label.unique()) == 1:
            return summary

        # The episode.
        query_class, ratio, partners = self.draw_episode(label)
        query, support = label == query_class, label != query_class
        second = self.node.ORDER == 2
        with differentiable_attention() if second else contextlib.nullcontext():
            gradients, *_ = self.regularised_gradients(embedded[support], frozen[support], label[support], second)
        text, visual = (ctx - self.node.ADAPT_LR * gradient for ctx, gradient in zip(self.trained_prompts, gradients))
        images, texts = self.model.encode_embedded(embedded, visual), self.model.encode_text_prompts(text)
        mixed = ratio[:, None] * images[query] + (1 - ratio)[:, None] * images[support][partners]
        logits = self.towers.cosine_logits(mixed, texts)
        loss = (ratio * self.cross_entropy(logits, label[query], reduction="none")
                + (1 - ratio) * self.cross_entropy(logits, label[support][partners], reduction="none")).mean()
        gates = list(self.gates.parameters())
        gradients = self.gradients(self.node.LR_RATIO * loss, [*self.trained_prompts, *gates])
        self.apply_gradients(gradients[:2], self.trained_prompts)
        self.apply_gradients(gradients[2:], gates, self.for_gates)
        return {**summary, "query": loss.detach()}

    def regularised_gradients(self, embedded, frozen, label, create_graph=False):
        """([g of the text prompts, g of the visual prompts], cross-entropy, logits (B, n_cls)) of embedded images whose
        frozen features are `frozen` (B, E)."""
        images, texts = self.model.encode_embedded(embedded), self.model.encode_text_prompts()
        logits = self.towers.cosine_logits(images, texts)
        loss = self.cross_entropy(logits, label)
        # Each distance depends on its own tower's prompts alone, so the sum's gradient is both of theirs.
        distance = (self.node.TEXT_LOSS_WEIGHT * l1_distance(texts, self.frozen_text_features)
                    + self.node.IMAGE_LOSS_WEIGHT * l1_distance(images, frozen))
        task = self.gradients(loss, self.trained_prompts, create_graph=create_graph, retain_graph=True)
        regulariser = self.gradients(distance, self.trained_prompts, create_graph=create_graph)
        return [gate(*pair) for gate, *pair in zip(self.gates, task, regulariser)], loss, logits

    def draw_episode(self, label):
        """(the query class, a mixing ratio and the number of a support image for each query image)."""
        rng, classes = self.step_rng("episode"), label.unique().tolist()
        chosen = rng.choice(classes)
        size = int((label == chosen).sum())
        ratio = [rng.betavariate(self.node.MIXUP_ALPHA, self.node.MIXUP_BETA) for _ in range(size)]
        partners = [rng.randrange(len(label) - size) for _ in range(size)]
        return chosen, torch.tensor(ratio, device=label.device), torch.tensor(partners, device=label.device)
