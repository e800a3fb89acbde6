"""The plain formulation: each method's published schedule, written as simply as possible.

All 77 tokens of every prompt run through CLIP's own blocks; a forward pass encodes frozen images, prompted images and
prompted text, whatever its loss uses; prompts that do not depend on the image are encoded again for every test batch.
Frozen text features are computed once, and a class half encodes its own classes only, as the published code does.
Every method has
    prompts                  the learned tensors
    train_step(batch, lr)    one batch's updates -> (losses, gradients that were applied)
    evaluate(images)         -> logits (B, n_cls)
"""
import clip
import torch
from torch import nn
from torch.nn import functional as F

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


def encode_image(model, images, prompts=()):
    """Images and deep visual prompts, (n, W) a layer -> (B, E) of length 1."""
    visual = model.visual
    x = visual.conv1(images).flatten(2).permute(0, 2, 1)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    if len(prompts):
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x).permute(1, 0, 2)  # CLIP's blocks are (tokens, batch, W)
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer < len(prompts):
            x = torch.cat([x[:-len(prompts[layer])], prompts[layer][:, None].expand(-1, x.shape[1], -1)])
        x = block(x)
    x = visual.ln_post(x.permute(1, 0, 2)[:, 0]) @ visual.proj
    return x / x.norm(dim=-1, keepdim=True)


def encode_text(model, embedded, tokens, deep=()):
    """Embedded prompts (C, 77, W), their token numbers (C, 77) and deep prompts, (n, W) a layer from the second on
    -> (C, E) of length 1."""
    x = (embedded + model.positional_embedding).permute(1, 0, 2)
    for layer, block in enumerate(model.transformer.resblocks):
        if 0 < layer <= len(deep):
            ctx = deep[layer - 1]
            x = torch.cat([x[:1], ctx[:, None].expand(-1, x.shape[1], -1), x[1 + len(ctx):]])
        x = block(x)
    x = model.ln_final(x.permute(1, 0, 2))
    x = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ model.text_projection
    return x / x.norm(dim=-1, keepdim=True)


class PlainPrompts:
    """Tokenized classes with room for `n_ctx` context vectors."""

    def __init__(self, model, classnames, n_ctx):
        room = " ".join(["X"] * n_ctx)
        self.tokens = clip.tokenize([f"{room} {name}." for name in classnames]).to(model.text_projection.device)
        embedded = model.token_embedding(self.tokens)
        self.prefix, self.suffix = embedded[:, :1], embedded[:, 1 + n_ctx:]

    def __call__(self, ctx, classes=slice(None)):
        prefix, suffix = self.prefix[classes], self.suffix[classes]
        return torch.cat([prefix, ctx.expand(len(prefix), -1, -1), suffix], dim=1), self.tokens[classes]


class PlainCoOp:
    """Zhou et al., arXiv 2109.01134."""

    def __init__(self, model, classnames, start):
        self.model, self.scale = model, model.logit_scale.exp()
        self.ctx = start["prompt_learner.ctx"]
        self.prompts = list(start.values())
        self.classes = PlainPrompts(model, classnames, len(self.ctx))

    def logits(self, images):
        image = encode_image(self.model, images)
        return self.scale * image @ encode_text(self.model, *self.classes(self.ctx)).t()

    def train_step(self, batch, lr):
        loss = F.cross_entropy(self.logits(batch["img"]), batch["label"])
        gradients = torch.autograd.grad(loss, self.prompts)
        apply(torch.optim.SGD(self.prompts, lr, MOMENTUM, weight_decay=WEIGHT_DECAY), self.prompts, gradients)
        return [loss.detach()], list(gradients)

    @torch.no_grad()
    def evaluate(self, images):
        return self.logits(images)


class PlainCoCoOp(PlainCoOp):
    """Zhou et al., arXiv 2203.05557: one pass of the text tower an image."""

    def __init__(self, model, classnames, start):
        super().__init__(model, classnames, start)
        names = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
        self.meta_net = [start[f"prompt_learner.meta_net.{name}"] for name in names]

    def logits(self, images):
        features = encode_image(self.model, images)
        weight1, bias1, weight2, bias2 = self.meta_net
        shifts = F.linear(F.relu(F.linear(features, weight1, bias1)), weight2, bias2)
        rows = []
        for image, shift in zip(features, shifts):
            text = encode_text(self.model, *self.classes(self.ctx + shift))
            rows.append(self.scale * image @ text.t())
        return torch.stack(rows)


class PlainMetaPrompt:
    """Zhao et al., arXiv 2212.04196, section III, order 1: after the in-domain update each part of the batch is held
    out in turn, with an inner pass on the rest and an outer pass on the part.

    Args:
        split: "class" or "domain".
        halves: batch -> the two halves of the classes, index tensors.
        meta_step: rate of the meta-update in learning rates.
    """

    def __init__(self, model, classnames, start, split, halves, meta_step):
        self.model, self.scale = model, model.logit_scale.exp()
        self.split, self.halves, self.meta_step = split, halves, meta_step
        self.ctx, self.vision_ctx = start["prompt_learner.ctx"], start["vision_prompt_learner.ctx"]
        self.prompts = [self.ctx, self.vision_ctx]
        self.classes = PlainPrompts(model, classnames, self.ctx.shape[1])
        tokens = clip.tokenize([f"a photo of a {name}" for name in classnames]).to(self.ctx.device)
        with torch.no_grad():
            self.frozen_text = encode_text(model, model.token_embedding(tokens), tokens)

    def forward(self, images, ctx, vision_ctx, classes=slice(None)):
        """-> (image logits, text logits), (B, n_cls) each."""
        frozen = encode_image(self.model, images)
        prompted = encode_image(self.model, images, vision_ctx)
        embedded, tokens = self.classes(ctx[0], classes)
        text = encode_text(self.model, embedded, tokens, deep=ctx[1:])
        return self.scale * prompted @ self.frozen_text[classes].t(), self.scale * frozen @ text.t()

    def train_step(self, batch, lr):
        images, label = batch["img"], batch["label"]
        image_logits, text_logits = self.forward(images, *self.prompts)
        mix = (image_logits + text_logits) / 2
        loss = (F.cross_entropy(mix, label) + F.cross_entropy(image_logits, label)
                + F.cross_entropy(text_logits, label))
        gradients = torch.autograd.grad(loss, self.prompts)
        apply(torch.optim.SGD(self.prompts, lr, MOMENTUM, weight_decay=WEIGHT_DECAY), self.prompts, gradients)

        phi = self.ctx if self.split == "class" else self.vision_ctx
        parts = self.parts(batch)
        losses, total = [loss.detach()], torch.zeros_like(phi)
        for i, (index, classes) in enumerate(parts):
            rest = torch.cat([other for j, (other, _) in enumerate(parts) if j != i])
            rest_classes = parts[1 - i][1] if self.split == "class" else classes
            inner, = torch.autograd.grad(self.part_loss(images[rest], label[rest], phi, rest_classes), phi)
            moved = (phi - lr * inner).detach().requires_grad_()
            held_out = self.part_loss(images[index], label[index], moved, classes)
            total += torch.autograd.grad(held_out, moved)[0]
            losses.append(held_out.detach())
        apply(torch.optim.SGD([phi], self.meta_step * lr), [phi], [total])
        return losses, [*gradients, total]

    def parts(self, batch):
        """[(images, classes)] of the batch's domains, or of the two halves of the classes."""
        if self.split == "domain":
            return [(torch.where(batch["domain"] == d)[0], slice(None)) for d in batch["domain"].unique()]
        return [(torch.where(torch.isin(batch["label"], half))[0], half) for half in self.halves(batch)]

    def part_loss(self, images, label, phi, classes):
        if self.split == "domain":
            return F.cross_entropy(self.forward(images, self.ctx, phi)[0], label)
        target = (label[:, None] == classes).int().argmax(dim=1)
        return F.cross_entropy(self.forward(images, phi, self.vision_ctx, classes)[1], target)

    @torch.no_grad()
    def evaluate(self, images):
        return sum(self.forward(images, *self.prompts)) / 2


def apply(optimizer, tensors, gradients):
    for tensor, gradient in zip(tensors, gradients):
        tensor.grad = gradient.clone()
    optimizer.step()
    for tensor in tensors:
        tensor.grad = None


def to_prompts(state):
    """{name: tensor} -> leaf copies that are learned."""
    return {name: nn.Parameter(tensor.detach().clone()) for name, tensor in state.items()}
