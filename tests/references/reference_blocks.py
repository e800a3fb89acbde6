"""CLIP-LoRA and MMA written down plainly on the modules of OpenAI's `clip.model`, as their description says: whole
sequences, all classes padded to the context's length, the sequence first. Nothing of the product is used."""
import json
import zlib

import clip
import numpy as np
import torch
from torch.nn import functional as F

import tiny_clip

PARTS = {"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.proj"}
TOWERS = {"text": "transformer", "visual": "visual.transformer"}


def options_of(meta):
    pairs = (line.split("=", 1) for line in meta["authors_config"])
    return {key.rsplit(".", 1)[-1]: value for key, value in pairs}


class Towers:
    """The two towers of a CLIP, whose blocks `block(tower, number, module, x, mask)` computes; x (T, N, 128)."""

    def __init__(self, model, meta):
        self.model, self.meta, self.options = model, meta, options_of(meta)
        self.step = None  # None: evaluation
        names = [name.replace("_", " ") for name in meta["classnames"]]
        self.tokens = clip.tokenize([self.options.get("template", "a photo of a {}.").format(name) for name in names])

    def block(self, tower, number, module, x, mask):
        raise NotImplementedError

    def at_input(self, tower, x):
        return x

    def run(self, tower, blocks, x, mask):
        for number, module in enumerate(blocks):
            x = self.block(tower, number, module, x, mask)
        return x

    def texts(self):
        model, tokens = self.model, self.tokens
        x = (self.at_input("text", model.token_embedding(tokens)) + model.positional_embedding).transpose(0, 1)
        mask = torch.full((77, 77), float("-inf")).triu(1)
        x = self.run("text", model.transformer.resblocks, x, mask).transpose(0, 1)
        return model.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection

    def images(self, images):
        visual = self.model.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = self.at_input("visual", visual.ln_pre(x)).transpose(0, 1)
        x = self.run("visual", visual.transformer.resblocks, x, None)
        return visual.ln_post(x[0]) @ visual.proj

    def logits(self, images):
        scale = float(self.options.get("logit_scale", self.model.logit_scale.exp().item()))
        return scale * F.normalize(self.images(images), dim=1) @ F.normalize(self.texts(), dim=1).T


class LowRank(Towers):
    """tensors: {authors' name: tensor}."""

    def __init__(self, model, meta, tensors):
        super().__init__(model, meta)
        self.tensors = tensors
        self.scale = float(self.options["alpha"]) / float(self.options["r"]) ** 0.5
        self.rate = float(self.options["dropout_rate"])
        if self.options["encoder"] == "vision":
            with torch.no_grad():
                fixed = super().texts()
            self.texts = lambda: F.normalize(fixed, dim=1)

    def path(self, tower, number, part, x):
        name = f"{TOWERS[tower]}.resblocks.{number}.{PARTS[part]}.w_lora_"
        if f"{name}A" not in self.tensors:
            return 0
        if self.step is not None and self.rate:
            label = f"{self.meta['case']}/dropout/{self.step}/{tower}.{number}.{part}"
            seed = zlib.crc32(label.encode()) & 0x7FFFFFFF
            kept = np.random.RandomState(seed).random_sample(tuple(x.shape)) >= self.rate
            x = x * torch.from_numpy(kept).float() / (1 - self.rate)
        return self.scale * (x @ self.tensors[f"{name}A"].T) @ self.tensors[f"{name}B"].T

    def block(self, tower, number, module, x, mask):
        normed, attn = module.ln_1(x), module.attn
        weights = zip("qkv", attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3))
        q, k, v = (normed @ w.T + b + self.path(tower, number, part, normed) for part, w, b in weights)
        q, k, v = (t.unflatten(2, (attn.num_heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))  # (N, heads, T, 64)
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        seen = ((scores if mask is None else scores + mask).softmax(-1) @ v).permute(2, 0, 1, 3).flatten(2)
        x = x + attn.out_proj(seen) + self.path(tower, number, "o", seen)
        return x + module.mlp(module.ln_2(x))


class MultiModal(Towers):
    def __init__(self, model, meta, tensors):
        super().__init__(model, meta)
        self.tensors, self.scale = tensors, float(self.options["ADAPTER_SCALE"])

    def linear(self, name, x):
        return F.linear(x, self.tensors[f"adapter_learner.{name}.weight"], self.tensors[f"adapter_learner.{name}.bias"])

    def adapter(self, tower, i, x):
        inner = self.linear(f"{tower}_adapter.{i}.down.0", x).relu()
        return self.scale * self.linear(f"{tower}_adapter.{i}.up", self.linear(f"shared_adapter.{i}.0", inner).relu())

    def has(self, i):
        return int(self.options["ADAPTER_START"]) <= i <= int(self.options["ADAPTER_END"])

    def at_input(self, tower, x):
        return x + self.adapter(tower, 0, x) if self.has(0) else x

    def block(self, tower, number, module, x, mask):
        out = module(x)
        if not self.has(number + 1):
            return out
        inner = x.clone()
        if inner.requires_grad:
            inner.register_hook(lambda gradient: gradient * self.scale)
        added = self.adapter(tower, number + 1, module.ln_1(inner))
        if added.requires_grad:
            added.register_hook(lambda gradient: gradient / self.scale)
        return out + added


def train(model, meta, start, made=None):
    """The arrays of a record: what the method of `meta` gives from `start`, {authors' name: array}. made: how many of
    its steps are made; default all."""
    tensors = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in start.items()}
    theirs, lora = meta["optimizer"], meta["method"] == "CLIPLoRA"
    towers = (LowRank if lora else MultiModal)(model, meta, tensors)
    schedule = None
    settings = {"lr": theirs["lr"], "weight_decay": theirs["weight_decay"]}
    if lora:
        optimizer = torch.optim.AdamW(tensors.values(), **settings)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, meta["steps"], eta_min=1e-6)
    else:
        optimizer = torch.optim.SGD(tensors.values(), momentum=theirs["momentum"], **settings)
    images = tiny_clip.batch("eval", 0, 16, meta["classes"])["img"]
    record = {"init/" + name: value for name, value in start.items()}
    with torch.no_grad():
        record["logits_before"] = towers.logits(images).numpy()
    losses, logits = [], []
    for towers.step in range(made or meta["steps"]):
        batch = tiny_clip.batch(meta["case"], towers.step, meta["batch"], meta["classes"], meta.get("domains", 1))
        logits.append(towers.logits(batch["img"]))
        loss = F.cross_entropy(logits[-1], batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        losses.append(loss.item())
    towers.step = None
    with torch.no_grad():
        record["logits_after"] = towers.logits(images).numpy()
        if lora:
            record["extra/train_logits"] = torch.stack(logits).numpy()
        else:
            record["extra/final_text_features"] = F.normalize(towers.texts(), dim=1).numpy()
    record |= {"final/" + name: tensor.detach().numpy() for name, tensor in tensors.items()}
    return {**record, "loss": np.array(losses)}


def write(path, record, meta):
    np.savez(path, meta=np.array(json.dumps(meta)), **record)
