"""MetaPrompt: Zhao et al., "Learning Domain Invariant Prompt for Vision-Language Models", arXiv 2212.04196.

Learned: deep prompts of both towers. Loss: an asymmetric contrast, each prompted modality against the other's frozen
features (section III-B). Each batch makes two updates: an in-domain update on the whole batch, then a meta-update of
one prompt, which lowers the loss on each part of the batch after a step on the other parts (section III-C, algorithm
1).
"""
import contextlib

import torch
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from dassl.utils import InputError, check_availability
from prompting.asymmetric import AsymmetricCLIP
from prompting.blocks import differentiable_attention
from prompting.class_prompts import readable
from prompting.episodes import halve_classes, meta_gradient
from prompting.templates import frozen_templates_of
from prompting.towers import Towers
from training import Batch, PromptTrainer, split_of


@TRAINER_REGISTRY.register()
class MetaPrompt(PromptTrainer):
    model: AsymmetricCLIP
    sampler = "MetaEpisodeSampler"
    min_batch = 2
    frozen_features = True

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

    def training_step(self, batch: Batch) -> dict[str, float]:
        model, frozen, label = self.model, batch["frozen"], batch["label"]
        embedded = model.image_tower.embed(batch["img"])

        # In-domain update: the loss has all three logits.
        image_logits = model.image_logits(model.encode_embedded(embedded))
        text_logits = model.text_logits(frozen, model.encode_text_prompts())
        mix = (image_logits + text_logits) / 2
        loss = (self.cross_entropy(mix, label) + self.cross_entropy(image_logits, label)
                + self.cross_entropy(text_logits, label))
        self.apply_gradients(self.gradients(loss, self.trainables))

        # Domain-split update: one prompt must also do well on the part that its step has not seen.
        phi, parts, counts = self.parts(batch, embedded, frozen)
        self.held_out_losses = []
        if parts:
            meta_update = self.released_update if self.node.VARIANT == "released" else self.paper_update
            self.held_out_losses = meta_update(phi, parts, counts)
        summary = {"loss": loss.item(), "acc": compute_accuracy(mix.detach(), label)[0].item()}
        if self.held_out_losses:
            summary["held_out"] = torch.stack(self.held_out_losses).mean().item()
        return summary

    def parts(self, batch, embedded, frozen):
        """(the prompt to meta-learn, the loss of each part of the batch as a function of that prompt, the number of
        images of each part)."""
        model, label = self.model, batch["label"]
        if self.split == "domain":
            chosen = [torch.where(batch["domain"] == d)[0] for d in batch["domain"].unique()]

            def loss_of_domain(index):
                return lambda ctx: self.cross_entropy(
                    model.image_logits(model.encode_embedded(embedded[index], ctx)), label[index])

            if len(chosen) < 2:
                raise InputError("a batch of MetaPrompt's domain split has images of one domain only")
            return model.vision_prompt_learner.ctx, [loss_of_domain(i) for i in chosen], [len(i) for i in chosen]
        if self.split == "none":
            return None, [], []

        order = torch.tensor(self.class_order(label), device=label.device)
        halves = order.split((len(order) + 1) // 2)
        chosen = [torch.where(torch.isin(label, half))[0] for half in halves]
        if not all(len(i) for i in chosen):  # the released code then leaves its second update out
            return None, [], []

        def loss_of_half(index, half):
            target = (label[index][:, None] == half).int().argmax(dim=1)
            return lambda ctx: self.cross_entropy(
                model.text_logits(frozen[index], model.encode_text_prompts(ctx, half)), target)

        return model.prompt_learner.ctx, [loss_of_half(i, h) for i, h in zip(chosen, halves)], [len(i) for i in chosen]

    def class_order(self, label: Tensor) -> list[int]:
        """The classes in the order drawn for this step; the first ceil(n/2) are one half."""
        rng = self.step_rng("class halves")
        if self.node.VARIANT == "released":
            return rng.sample(range(self.num_classes), self.num_classes)
        return halve_classes(label.tolist(), self.num_classes, rng)

    def paper_update(self, phi, parts, counts):
        """phi <- phi - META_STEP * lr * sum of the parts' meta-gradients, without momentum or decay."""
        def gradient(loss, tensor, **kwargs):
            return self.gradients(loss, [tensor], **kwargs)[0]

        lr, order = self.get_current_lr(), self.node.ORDER
        with differentiable_attention() if order == 2 else contextlib.nullcontext():
            total, held_out = meta_gradient(phi, parts, counts, lr, order, gradient)
        self.apply_gradients([total], [phi], torch.optim.SGD([phi], lr=self.node.META_STEP * lr))
        return held_out

    def released_update(self, phi, parts, counts):
        """What the authors' code computes: inner steps go through the main optimizer, whose momentum and decay also
        move the other prompt, and only the first inner step is undone."""
        start, total, held_out = phi.detach().clone(), torch.zeros_like(phi), []
        others = [t for t in self.trainables if t is not phi]
        for i, part in enumerate(parts):
            rest = [j for j in range(len(parts)) if j != i]
            loss = sum(counts[j] * parts[j](phi) for j in rest) / sum(counts[j] for j in rest)
            inner = self.gradients(loss, [phi])
            self.apply_gradients([*inner, *(torch.zeros_like(t) for t in others)], [phi, *others])
            loss = part(phi)
            total += self.gradients(loss, [phi])[0]
            held_out.append(loss.detach())
            if i == 0:
                phi.data.copy_(start)
        lr = self.node.META_STEP * self.get_current_lr()
        self.apply_gradients([total], [phi], torch.optim.SGD([phi], lr=lr))
        return held_out
