"""TaskRes, PLOT and PLOT++ once more, plainly, on OpenAI's modules: one pass for each prompt and each set of visual
prompts, and nothing of the code that they check. They make records of settings that have none."""
import json

import clip
import numpy as np
import torch
from torch.nn import functional as F

import tiny_clip

STARTS = {
    "Caltech101": ["a photo of a", "this is a photo", "this is picture of", "one picture of a"],
    "EuroSAT": ["a centered satellite photo of", "a centered satellite picture of",
                "this is centered satellite photo of", "one centered satellite photo of a"],
}
EIGHT = ["itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
         "a {} in a video game.", "art of the {}.", "a photo of the small {}.", "a photo of a {}."]


def text_features(model, tokens, ctx=None):
    """Tokens (C, 77), and a context (n, W) that takes the places behind the start token -> (C, E). What stands behind
    the last end-of-text token, which nothing sees, is left out."""
    length = tokens.argmax(dim=1).max() + 1
    x = model.token_embedding(tokens[:, :length])
    if ctx is not None:
        x = torch.cat([x[:, :1], ctx.expand(len(x), -1, -1), x[:, 1 + len(ctx):]], dim=1)
    x = (x + model.positional_embedding[:length]).permute(1, 0, 2)
    for block in model.transformer.resblocks:
        normed, mask = block.ln_1(x), block.attn_mask[:length, :length]
        x = x + block.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
    x = x.permute(1, 0, 2)
    return model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection


def image_tokens(model, images, prompts=None):
    """Images, and prompts (n, W) behind the patches -> the features of all tokens but the prompts, (B, T, E)."""
    visual = model.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    tokens = x.shape[1]
    if prompts is not None:
        x = torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1)
    x = visual.transformer(visual.ln_pre(x).permute(1, 0, 2)).permute(1, 0, 2)
    return (visual.ln_post(x) @ visual.proj)[:, :tokens]


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


class Reference:
    """A method at the settings of a record: `logits` of images, with the tensors that are trained."""

    def __init__(self, model, meta, starts):
        self.model, self.meta, self.scale = model, meta, model.logit_scale.exp().item()
        self.theirs = {line.split("=")[0].split(".")[-1]: line.split("=")[1] for line in meta["authors_config"]}
        self.tensors = {name: torch.tensor(value, requires_grad=True) for name, value in starts.items()}
        self.names = meta["classnames"]
        self.extras = {}
        with torch.no_grad():
            self.prepare()

    def prepare(self):
        """What is computed once."""

    def cosines(self, images, texts):
        return self.scale * unit(images) @ unit(texts).T

    def record(self):
        """The arrays of a record: the start, six steps of SGD, the end."""
        meta, theirs = self.meta, self.meta["optimizer"]
        optim = torch.optim.SGD(self.tensors.values(), lr=theirs["lr"], momentum=theirs["momentum"],
                                weight_decay=theirs["weight_decay"])
        evaluation = tiny_clip.batch("eval", 0, 16, meta["classes"])["img"]
        arrays = {f"init/{name}": tensor.detach().clone() for name, tensor in self.tensors.items()}
        with torch.no_grad():
            arrays["logits_before"] = self.logits(evaluation)
        losses = []
        for step in range(meta["steps"]):
            batch = tiny_clip.batch(meta["case"], step, meta["batch"], meta["classes"])
            loss = F.cross_entropy(self.logits(batch["img"]), batch["label"])
            optim.zero_grad()
            loss.backward()
            optim.step()
            losses.append(loss.item())
        with torch.no_grad():
            arrays["logits_after"] = self.logits(evaluation)
        arrays |= {f"final/{name}": tensor.detach() for name, tensor in self.tensors.items()}
        arrays |= {f"extra/{name}": value for name, value in self.extras.items()}
        return {**{name: np.asarray(value) for name, value in arrays.items()}, "loss": np.array(losses),
                "meta": np.array(json.dumps(meta))}


class TaskRes(Reference):
    def prepare(self):
        templates = EIGHT if self.meta["dataset"] == "ImageNet" else ["a photo of a {}."]
        self.texts = sum(text_features(self.model, clip.tokenize([t.format(name) for name in self.names]))
                         for t in templates) / len(templates)
        self.extras["base_text_features"] = self.texts

    def logits(self, images):
        rows = self.texts + float(self.theirs["RESIDUAL_SCALE"]) * self.tensors["prompt_learner.text_feature_residuals"]
        return self.cosines(image_tokens(self.model, images)[:, 0], rows)


class Transported(Reference):
    def prepare(self):
        self.extras["sinkhorn_rounds"] = []

    def transport(self, locals_, texts):
        """Images' features (B, M, E) and classes' (N, C, E) -> logits (B, C)."""
        pairs = [[unit(image) @ unit(texts[:, c]).T for c in range(texts.shape[1])] for image in locals_]
        sim = torch.stack([torch.stack(row) for row in pairs])  # (B, C, M, N)
        with torch.no_grad():
            k = torch.exp(-(1 - sim) / 0.1)
            r, c = torch.ones_like(k[..., 0]), torch.ones_like(k[..., 0, :])
            number, last = 0, r
            while number < 100 and (number == 0 or (r - last).abs().mean().item() >= 0.01):
                number, last = number + 1, r
                r = (1 / k.shape[2]) / (k * c[:, :, None, :]).sum(dim=3)
                c = (1 / k.shape[3]) / (k * r[:, :, :, None]).sum(dim=2)
            plan = r[:, :, :, None] * k * c[:, :, None, :]
        self.extras["sinkhorn_rounds"].append(number)
        return self.scale * torch.einsum("bcmn,bcmn->bc", plan, sim)


class PLOT(Transported):
    def logits(self, images):
        tokens = image_tokens(self.model, images)
        n_ctx = int(self.theirs["N_CTX"])
        prompts = clip.tokenize([" ".join(["X"] * n_ctx) + f" {name.replace('_', ' ')}." for name in self.names])
        texts = torch.stack([text_features(self.model, prompts, ctx) for ctx in self.tensors["prompt_learner.ctx"]])
        logits = self.transport(tokens[:, 1:], texts)
        return logits + (self.cosines(tokens[:, 0], texts.mean(dim=0)) if self.meta["dataset"] == "ImageNet" else 0)


class PLOTPP(Transported):
    def prepare(self):
        super().prepare()
        starts = STARTS[self.meta["dataset"]][:int(self.theirs["N"])]
        self.prompts = [clip.tokenize([f"{start} {name.replace('_', ' ')}." for name in self.names])
                        for start in starts]
        self.words = [None] * len(starts)  # as they stand in the tokens, where nothing of them is learned
        self.extras["tokenized_prompts"] = torch.cat(self.prompts)[:, :16]

    def logits(self, images):
        features = torch.stack([image_tokens(self.model, images, prompts)[:, 0]
                                for prompts in self.tensors["prompt_learner.ctx_vision"]], dim=1)
        texts = torch.stack([text_features(self.model, tokens, ctx) for tokens, ctx in zip(
            self.prompts, self.tensors.get("prompt_learner.ctx", self.words))])
        logits = self.transport(features, texts)
        pooled = self.theirs["TRADE_OFF"] == "True"
        return logits + (self.cosines(features.mean(dim=1), texts.mean(dim=0)) if pooled else 0)


METHODS = {"TaskRes": TaskRes, "PLOT": PLOT, "PLOTPP": PLOTPP}


def starting_words(model, dataset):
    """What PLOT++'s text prompts start as: as many vectors of each start as the first has words."""
    n = len(STARTS[dataset][0].split())
    return torch.stack([model.token_embedding(clip.tokenize(start)[0])[1:1 + n] for start in STARTS[dataset]])


def drawn(case, name, *shape):
    return 0.02 * torch.from_numpy(tiny_clip.normal(f"{case}/{name}", *shape))


def varied(meta, case, dataset, **settings):
    """The meta of a variant: that of a recorded case, with another name and dataset and these authors' settings."""
    lines = [next((f"{line.split('=')[0]}={value}" for key, value in settings.items()
                   if line.split("=")[0].endswith(f".{key}")), line) for line in meta["authors_config"]]
    assert all(any(line.endswith(f".{key}={value}") for line in lines) for key, value in settings.items())
    return {**meta, "case": case, "dataset": dataset, "authors_config": lines}
