"""The methods of tests/plugins/kinds, written down once more with OpenAI's `clip` alone.

Each function takes a `clip.model.CLIP`, and calls its own forward over all 77 tokens of every prompt. What is learned
comes as `leaves`, {name in the method's module: tensor that wants a gradient}. A layer that is changed becomes a
function of the leaves and takes its place by `functional_call`, so that the CLIP's modules stay the plain ones.
"""
import contextlib

import clip
import torch
from torch.func import functional_call
from torch.nn import functional as F

TEMPLATE = "a photo of a {}."


def tokens_of(classnames, template=TEMPLATE):
    """(n_cls, 77)"""
    return clip.tokenize([template.format(name.replace("_", " ")) for name in classnames])


# ---- weights that change: {name of a parameter of the CLIP: tensor} ----
def lora_parametrized(model, leaves, node):
    """W + ALPHA / RANK * B A, from `...parametrizations.<weight>.0.down` and `.up`."""
    merged = {}
    for name, down in leaves.items():
        stem, _, matrix = name.rpartition(".0.")
        if matrix == "down":
            place = stem.removeprefix("clip.").replace("parametrizations.", "")
            merged[place] = model.get_parameter(place) + node.ALPHA / node.RANK * leaves[f"{stem}.0.up"] @ down
    assert len(merged) == 2 * (len(model.transformer.resblocks) + len(model.visual.transformer.resblocks))
    return merged


def lora_wrapped(model, leaves, node):
    """W + ALPHA / RANK * B A, from `...<layer>.lora_A.weight` and `lora_B.weight`."""
    merged = {}
    for name, down in leaves.items():
        stem, _, matrix = name.rpartition(".lora_")
        if matrix == "A.weight":
            place = f"{stem.removeprefix('clip.')}.weight"
            up = leaves[f"{stem}.lora_B.weight"]
            merged[place] = model.get_parameter(place) + node.ALPHA / node.RANK * up @ down
    assert len(merged) == 3 * node.BLOCKS * 2
    return merged


def own_weights(model, leaves, node):
    """What is learned are tensors of the CLIP."""
    return {name.removeprefix("clip."): leaf for name, leaf in leaves.items()}


def tower_logits(weights):
    """The logits of a method that changes weights: CLIP's own forward."""
    def logits(model, leaves, node, images, classnames):
        merged = weights(model, leaves, node)
        return functional_call(model, merged, (images, tokens_of(classnames)))[0]

    return logits


# ---- learned context ----
@contextlib.contextmanager
def context_in_place(model, ctx):
    """While it lasts, the token vectors at the positions 1..n of every prompt are those of `ctx` (n, W)."""
    def replace(module, arguments, embedded):
        return torch.cat([embedded[:, :1], ctx.expand(len(embedded), -1, -1), embedded[:, 1 + len(ctx):]], dim=1)

    hook = model.token_embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def context_logits(model, ctx, images, classnames):
    with context_in_place(model, ctx):
        return model(images, tokens_of(classnames, " ".join(["X"] * len(ctx)) + " {}."))[0]


def patch_logits(model, leaves, node, images, classnames):
    """The mean of the class token's logits and of the patches', these weighted by their softmax over the patches."""
    (ctx,) = leaves.values()
    kept = []
    hook = model.visual.transformer.register_forward_hook(lambda module, arguments, output: kept.append(output))
    whole = context_logits(model, ctx, images, classnames)
    hook.remove()
    with context_in_place(model, ctx):
        text = model.encode_text(tokens_of(classnames, " ".join(["X"] * len(ctx)) + " {}."))
    patches = model.visual.ln_post(kept[0].permute(1, 0, 2)[:, 1:]) @ model.visual.proj
    cosines = F.normalize(patches, dim=-1) @ F.normalize(text, dim=-1).t()
    patches = model.logit_scale.exp() * cosines
    return (whole + (F.softmax(patches, dim=1) * patches).sum(dim=1)) / 2


# ---- test time ----
def adapted(model, leaves, node, views, image, classnames):
    """One update of the context on the views (V, 3, H, W) -> (loss, gradient, logits of the image (1, n_cls))."""
    (start,) = leaves.values()
    ctx = start.detach().clone().requires_grad_()
    p = context_logits(model, ctx, views, classnames).softmax(dim=-1)
    entropies = -(p * p.log()).sum(dim=-1)
    kept = sorted(range(len(p)), key=lambda view: entropies[view].item())[:int(node.KEEP * len(p))]
    mean = sum(p[view] for view in kept) / len(kept)
    loss = -(mean * mean.log()).sum()
    (gradient,) = torch.autograd.grad(loss, ctx)
    optimizer = torch.optim.AdamW([ctx], lr=node.LR)
    ctx.grad = gradient.clone()
    optimizer.step()
    with torch.no_grad():
        return loss.detach(), gradient, context_logits(model, ctx, image, classnames)


@torch.no_grad()
def refined(model, node, images, classnames):
    """Prototypes refined over the batch -> logits (B, n_cls)."""
    words = F.normalize(model.encode_text(tokens_of(classnames)), dim=-1)
    features = F.normalize(model.encode_image(images), dim=-1)
    prototypes = words
    for _ in range(node.STEPS):
        shares = (model.logit_scale.exp() * features @ prototypes.t()).softmax(dim=-1)
        sums = [sum(share[c] * feature for share, feature in zip(shares, features)) for c in range(len(words))]
        prototypes = F.normalize(node.WORDS * words + torch.stack(sums), dim=-1)
    return model.logit_scale.exp() * features @ prototypes.t()


LOGITS = {  # of the methods that train: (model, leaves, node, images, classnames) -> (B, n_cls)
    "LoRAParametrized": tower_logits(lora_parametrized),
    "LoRAWrapped": tower_logits(lora_wrapped),
    "LayerNormTuning": tower_logits(own_weights),
    "FineTunedAverage": tower_logits(own_weights),
    "PatchAttention": patch_logits,
}
