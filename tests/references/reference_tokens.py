"""MMRL and RPO once more, plainly, on OpenAI's modules: whole sequences of 77 and more tokens with masks, and nothing
of the code that they check. They make records of settings that have none."""
import json

import clip
import numpy as np
import torch
from torch.nn import functional as F

import tiny_clip

TEMPLATES = {"Caltech101": "a photo of a {}.", "EuroSAT": "a centered satellite photo of {}.",
             "OxfordFlowers": "a photo of a {}, a type of flower."}


def run(block, x, mask):
    """One block for tokens (B, T, W) with a mask that is added, (T, T) or one for each head of each sequence."""
    x = x.permute(1, 0, 2)
    normed = block.ln_1(x)
    x = x + block.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
    return (x + block.mlp(block.ln_2(x))).permute(1, 0, 2)


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


def mask_of(seen):
    return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))


class Reference:
    """A method at the settings of a record. Subclasses define `loss`, `logits` and `features`."""

    def __init__(self, model, meta, starts):
        self.model, self.meta = model, meta
        self.theirs = {line.split("=")[0].split(".")[-1]: line.split("=")[1] for line in meta["authors_config"]}
        self.tensors = {name: torch.tensor(value, requires_grad=True) for name, value in starts.items()}
        self.evaluation = tiny_clip.batch("eval", 0, 16, meta["classes"])["img"]
        with torch.no_grad():
            self.prepare()

    def embedded_images(self, images):
        visual = self.model.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        return torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding

    def record(self):
        """The arrays of a record: the start, six steps of SGD, the end."""
        meta, theirs = self.meta, self.meta["optimizer"]
        optim = torch.optim.SGD(self.tensors.values(), lr=theirs["lr"], momentum=theirs["momentum"],
                                weight_decay=theirs["weight_decay"])
        arrays = {f"init/{name}": tensor.detach().clone() for name, tensor in self.tensors.items()}
        with torch.no_grad():
            arrays |= self.evaluated("before")
        losses = []
        for step in range(meta["steps"]):
            batch = tiny_clip.batch(meta["case"], step, meta["batch"], meta["classes"])
            loss = self.loss(batch["img"], batch["label"])
            optim.zero_grad()
            loss.backward()
            optim.step()
            losses.append(loss.item())
        with torch.no_grad():
            arrays |= self.evaluated("after")
        arrays |= {f"final/{name}": tensor.detach() for name, tensor in self.tensors.items()}
        return {**{name: np.asarray(value) for name, value in arrays.items()}, "loss": np.array(losses),
                "meta": np.array(json.dumps(meta))}


class MMRL(Reference):
    learner = "representation_learner.compound_rep_tokens"

    def prepare(self):
        theirs = self.theirs
        self.layers, self.alpha, self.weight = (json.loads(theirs[k]) for k in ("REP_LAYERS", "ALPHA", "REG_WEIGHT"))
        names = [name.replace("_", " ") for name in self.meta["classnames"]]
        self.tokens = clip.tokenize([TEMPLATES[self.meta["dataset"]].format(name) for name in names])
        self.frozen_texts = unit(self.model.encode_text(self.tokens))

    def with_tokens(self, blocks, x, tower, causal):
        """All blocks, numbered from 1: the tokens come in behind the first one, or take the place of theirs."""
        n = 0
        for number, block in enumerate(blocks, start=1):
            if number in self.layers:
                j = self.layers.index(number)
                weight, bias = (self.tensors[f"{self.learner}_r2{tower}proj.{j}.{part}"] for part in ("weight", "bias"))
                own = self.tensors[self.learner] @ weight.T + bias
                x = torch.cat([x[:, :1], own.expand(len(x), -1, -1), x[:, 1 + n:]], dim=1)
                n = len(own)
            x = run(block, x, mask_of(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()) if causal else None)
        return x, n

    def texts(self):
        model = self.model
        x = model.token_embedding(self.tokens) + model.positional_embedding
        x, n = self.with_tokens(model.transformer.resblocks, x, "t", True)
        return unit(model.ln_final(x)[torch.arange(len(x)), self.tokens.argmax(dim=1) + n] @ model.text_projection)

    def images(self, images):
        visual = self.model.visual
        x, n = self.with_tokens(visual.transformer.resblocks, visual.ln_pre(self.embedded_images(images)), "v", False)
        x = visual.ln_post(x)
        return (unit(x[:, 0] @ visual.proj),
                unit(x[:, 1:1 + n].mean(dim=1) @ self.tensors["image_encoder.proj_rep"]))

    def loss(self, images, labels):
        texts, (of_class, of_tokens) = self.texts(), self.images(images)
        with torch.no_grad():
            frozen = unit(self.model.encode_image(images))
        return (self.alpha * F.cross_entropy(100 * of_class @ texts.T, labels)
                + (1 - self.alpha) * F.cross_entropy(100 * of_tokens @ texts.T, labels)
                + self.weight * (1 - (of_class * frozen).sum(dim=1).mean())
                + self.weight * (1 - (texts * self.frozen_texts).sum(dim=1).mean()))

    def evaluated(self, when):
        texts, (of_class, of_tokens) = self.texts(), self.images(self.evaluation)
        new, rep = 100 * of_class @ texts.T, 100 * of_tokens @ texts.T
        arrays = {f"logits_{when}": self.alpha * new + (1 - self.alpha) * rep,
                  f"extra/logits_{when}_new": new, f"extra/logits_{when}_rep": rep}
        if when == "after":
            arrays |= {"extra/final_text_features": texts, "extra/frozen_text_features": self.frozen_texts}
        return arrays


class RPO(Reference):
    def prepare(self):
        template = self.theirs["PROMPT"]
        self.tokens = clip.tokenize([template.replace("_", name) for name in self.meta["classnames"]])
        self.lengths = self.tokens.argmax(dim=1) + 1

    def logits(self, images):
        model, visual, heads = self.model, self.model.visual, 2
        ours, theirs = self.tensors["prompt_learner.text_prompt"], self.tensors["prompt_learner.img_prompt"]
        k, at = len(ours), torch.arange(77)
        x = model.token_embedding(self.tokens) + model.positional_embedding
        rows, masks = [], []
        for row, length in zip(x, self.lengths.tolist()):
            rows.append(torch.cat([row[:length], ours, row[length + k:]]))
            masks.append(mask_of((at[None] <= at[:, None]) & (at[None] < length)))
        x, masks = torch.stack(rows), torch.stack(masks).repeat_interleave(heads, dim=0)
        for block in model.transformer.resblocks:
            x = run(block, x, masks)
        read = torch.stack([row[length:length + k] for row, length in zip(x, self.lengths.tolist())])
        texts = unit(model.ln_final(read) @ model.text_projection)

        y = self.embedded_images(images)
        y = visual.ln_pre(torch.cat([y, theirs.expand(len(y), -1, -1)], dim=1))
        seen = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool)
        seen[:, -k:] = False
        for block in visual.transformer.resblocks:
            y = run(block, y, mask_of(seen))
        images = unit(visual.ln_post(y[:, -k:]) @ visual.proj)
        return sum(model.logit_scale.exp() * images[:, i] @ texts[:, i].T for i in range(k)) / k

    def loss(self, images, labels):
        return F.cross_entropy(self.logits(images), labels)

    def evaluated(self, when):
        arrays = {f"logits_{when}": self.logits(self.evaluation)}
        return {**arrays, "extra/prompt_lengths": self.lengths.float()} if when == "after" else arrays


METHODS = {"MMRL": MMRL, "RPO": RPO}


def drawn(case, name, *shape):
    """Start values that follow from the names."""
    return tiny_clip.normal(f"{case}/{name}", *shape)


def varied(meta, case, settings, **more):
    """The meta of a recorded case, for another one with other values of some of the authors' keys."""
    known = {line.split("=")[0].rsplit(".", 1)[-1]: line.split("=")[0] for line in meta["authors_config"]}
    assert set(settings) <= set(known)
    lines = [f"{known[key]}={settings[key]}" if key in settings else line
             for line in meta["authors_config"] for key in [line.split("=")[0].rsplit(".", 1)[-1]]]
    return {**meta, "case": case, "authors_config": lines, **more}
