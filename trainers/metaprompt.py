"""MetaPrompt: Zhao et al., "Learning Domain Invariant Prompt for Vision-Language Models", arXiv 2212.04196.

Learned: deep prompts of both towers. Loss: an asymmetric contrast, each prompted modality against the other's frozen
features (section III-B). Each batch makes two updates: an in-domain update on the whole batch, then a meta-update of
one prompt, which lowers the loss on each part of the batch after a step on the other parts (section III-C, algorithm
1).
"""
import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, check_availability
from prompting.asymmetric import AsymmetricCLIP
from prompting.blocks import differentiable_attention
from prompting.class_prompts import readable
from prompting.episodes import halve_classes, meta_gradient, parts_of_domains, parts_of_halves
from prompting.templates import frozen_templates_of
from prompting.towers import Towers
from training import Batch, PromptTrainer, split_of


@TRAINER_REGISTRY.register()
class MetaPrompt(PromptTrainer):
    model: AsymmetricCLIP
    sampler = "MetaEpisodeSampler"
    min_batch = 2
    frozen_features = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.METAPROMPT = CN()
        cfg.TRAINER.METAPROMPT.N_CTX = 2  # text prompt tokens per layer
        cfg.TRAINER.METAPROMPT.N_PRO = 2  # image prompt tokens per layer
        cfg.TRAINER.METAPROMPT.LAYERS = 12  # depth of the prompts, in layers
        cfg.TRAINER.METAPROMPT.META_STEP = 0.2  # the meta-update's rate, in learning rates
        cfg.TRAINER.METAPROMPT.SPLIT = "auto"  # class, domain, or auto: domain when there are several source domains
        cfg.TRAINER.METAPROMPT.ORDER = 1  # order of the meta-gradient: 1 or 2
        cfg.TRAINER.METAPROMPT.VARIANT = "paper"  # paper, or released: as the authors' published code
        cfg.TRAINER.METAPROMPT.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        check_availability(node.VARIANT, ("paper", "released"), "TRAINER.METAPROMPT.VARIANT")
        if node.ORDER not in (1, 2) or (node.VARIANT == "released" and node.ORDER == 2):
            raise InputError("TRAINER.METAPROMPT.ORDER is 1 or 2, and 1 with VARIANT released")
        if not node.META_STEP >= 0:
            raise InputError(f"TRAINER.METAPROMPT.META_STEP must not be negative, it is {node.META_STEP}")

    def build_model(self, towers: Towers, classnames: list[str]) -> AsymmetricCLIP:
        node = self.node
        towers.promptable_image("MetaPrompt")
        self.split = split_of(self.cfg)
        self.static_step = node.VARIANT == "paper"  # the released one takes only the images of a part
        if self.split == "class" and len(classnames) < 4:
            if len(classnames) < 2:
                raise InputError("MetaPrompt's class split halves the classes, the data has one; "
                                 "use data with at least four classes")
            self.note(f"Note: {len(classnames)} classes cannot be halved into two classes each: no meta-update is made")
            self.split = "none"
        # The released code keeps "_" in the names of its frozen prompts.
        frozen_names = classnames if node.VARIANT == "released" else [readable(name) for name in classnames]
        return AsymmetricCLIP(towers, classnames, node.N_CTX, node.N_PRO, node.LAYERS, frozen_names,
                              self.frozen_templates(*frozen_templates_of(self.cfg.DATASET.NAME)), "TRAINER.METAPROMPT")

    def step_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The parts of the batch, as of `parts_of_domains` or `parts_of_halves`, and the rate of the inner step."""
        if self.split == "none":
            return {}
        if self.split == "domain":
            parts = parts_of_domains(batch["domain"].tolist(), len(self.cfg.DATASET.SOURCE_DOMAINS))
        else:
            label = batch["label"].cpu()
            parts = parts_of_halves(label, self.class_order(label))
        return {**parts, "lr": torch.tensor(self.get_current_lr())}

    def class_order(self, label: Tensor) -> list[int]:
        """The classes in the order drawn for this step; the first ceil(n/2) are one half."""
        rng = self.step_rng("class halves")
        if self.node.VARIANT == "released":
            return rng.sample(range(self.num_classes), self.num_classes)
        return halve_classes(label.tolist(), self.num_classes, rng)

    def training_step(self, batch: Batch) -> Mapping[str, float | Tensor]:
        model, frozen, label = self.model, batch["frozen"], batch["label"]
        embedded = model.image_tower.embed(batch["img"])

        # In-domain update: the loss has all three logits.
        image_logits = model.image_logits(model.encode_embedded(embedded))
        text_logits = model.text_logits(frozen, model.encode_text_prompts())
        mix = (image_logits + text_logits) / 2
        loss = (self.cross_entropy(mix, label) + self.cross_entropy(image_logits, label)
                + self.cross_entropy(text_logits, label))
        gradients = self.gradients(loss, self.trainables)
        summary: dict[str, float | Tensor] = {"loss": loss.detach(), "acc": self.batch_accuracy(mix, label)}
        self.apply_gradients(gradients)

        # Domain-split update: one prompt must also do well on the part that its step has not seen.
        self.held_out_losses: list[Tensor] = []  # as of the last step that was not in graphs
        meta_gradient_of = self.released_gradient if self.node.VARIANT == "released" else self.paper_gradient
        total = None if self.split == "none" else meta_gradient_of({**batch, "embedded": embedded})
        if total is not None:
            summary["held_out"] = torch.stack(self.held_out_losses).sum() / batch["counts"].count_nonzero()
            self.apply_gradients([total], [self.phi], self.meta_optimizer)
        return summary

    @property
    def phi(self) -> nn.Parameter:
        """The prompt that is meta-learned: that of the tower which tells the parts apart."""
        learner = self.model.vision_prompt_learner if self.split == "domain" else self.model.prompt_learner
        return learner.ctx

    def image_losses(self, batch: Batch, prompts: Any, rows: Any = slice(None)) -> Tensor:
        """The cross-entropy of some images with visual prompts, (J, n, W) or of each image's own, J of (B, n, W)."""
        features = self.model.encode_embedded(batch["embedded"][rows], prompts)
        return self.cross_entropy(self.model.image_logits(features), batch["label"][rows], reduction="none")

    def text_losses(self, batch: Batch, ctx: Tensor, half: int, rows: Any = slice(None)) -> Tensor:
        """The cross-entropy of some images among one half of the classes, with text prompts (J, n, W)."""
        classes = batch["classes"].split((self.num_classes + 1) // 2)[half]
        logits = self.model.text_logits(batch["frozen"][rows], self.model.encode_text_prompts(ctx, classes))
        return self.cross_entropy(logits, batch["targets"][half][rows], reduction="none")

    def losses_of_parts(self, batch: Batch, copies: Tensor) -> Tensor:
        """The mean loss of each part with its own copy of the prompt: (P, J, n, W) -> (P,)."""
        if self.split == "domain":  # one pass, in which each image has the prompts of its part
            own = copies.index_select(0, batch["part"]).unbind(dim=1)
            losses = self.image_losses(batch, own)
        else:
            losses = torch.stack([self.text_losses(batch, ctx, half) for half, ctx in enumerate(copies)])
        return (batch["shares"] * losses).sum(dim=1)

    def meta_optimizer(self) -> torch.optim.Optimizer:
        """phi <- phi - META_STEP * lr * meta-gradient, without momentum or decay."""
        return torch.optim.SGD([self.phi], lr=self.node.META_STEP * self.get_current_lr())

    def paper_gradient(self, batch: Batch) -> Tensor:
        """The sum of the parts' meta-gradients. It notes the losses held out, 0 for a domain that the batch lacks."""
        def gradient(loss, tensor, **kwargs):
            return self.gradients(loss, [tensor], **kwargs)[0]

        order = self.node.ORDER
        with differentiable_attention() if order == 2 else contextlib.nullcontext():
            total, held_out = meta_gradient(self.phi, functools.partial(self.losses_of_parts, batch), batch["counts"],
                                            batch["lr"], order, gradient)
        self.held_out_losses = list(held_out)
        return total

    def released_gradient(self, batch: Batch) -> Tensor | None:
        """What the authors' code computes: inner steps go through the main optimizer, whose momentum and decay also
        move the other prompt, and only the first inner step is undone. None where it leaves its meta-update out."""
        counts, phi = batch["counts"].tolist(), self.phi
        if self.split == "class" and not all(counts):
            return None
        parts = [number for number, count in enumerate(counts) if count]
        rows = [torch.where(batch["shares"][number] > 0)[0] for number in parts]

        def loss_of(number):
            if self.split == "domain":
                return self.image_losses(batch, phi, rows[number]).mean()
            return self.text_losses(batch, phi, number, rows[number]).mean()

        start, total = phi.detach().clone(), torch.zeros_like(phi)
        others = [t for t in self.trainables if t is not phi]
        for number in parts:
            rest = [other for other in parts if other != number]
            loss = sum(counts[other] * loss_of(other) for other in rest) / sum(counts[other] for other in rest)
            inner = self.gradients(loss, [phi])
            self.apply_gradients([*inner, *(torch.zeros_like(t) for t in others)], [phi, *others])
            loss = loss_of(number)
            total += self.gradients(loss, [phi])[0]
            self.held_out_losses.append(loss.detach())
            if number == 0:
                phi.data.copy_(start)
        return total
