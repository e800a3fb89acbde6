"""Replaying the records of the methods that adapt the towers' blocks: CLIP-LoRA and MMA."""
import types
import zlib

import numpy as np
import torch
from golden_case import Case

EPS = 1e-8  # of Adam
ROUNDING = 1e-6  # float32 first gradients of the records differ by at most 1.6e-6 (6.4e-6 with dropout) from float64
MOST = 0.02  # of the entries of a tensor may be those whose first gradient is nearly zero


class Blocks(Case):
    def __init__(self, record, folder):
        super().__init__(record, folder)
        self.logits = []

    def overrides(self):
        def compute_loss(trainer, batch):
            loss, logits = type(trainer).compute_loss(trainer, batch)
            self.logits.append(logits.detach())
            return loss, logits

        return {"compute_loss": compute_loss}

    def extras(self, trainer):
        if "extra/train_logits" in self.record:
            yield "training logits", torch.stack(self.logits), self.record["extra/train_logits"]
        if "extra/final_text_features" in self.record:
            with torch.no_grad():
                features = trainer.model.encode_classes()
            yield ("text features", torch.nn.functional.normalize(features, dim=-1),
                   self.record["extra/final_text_features"], 5e-6)


class CLIPLoRA(Blocks):
    names = {"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.proj"}

    def __init__(self, record, folder):
        super().__init__(record, folder)
        self.first = {}  # {id of a tensor: its first gradient that is not 0}

    def options(self):
        theirs = self.theirs
        return {"RANK": int(theirs["r"]), "ALPHA": float(theirs["alpha"]), "POSITION": theirs["position"],
                "PARAMS": "".join(letter for letter in theirs["params"] if letter in "qkvo"),
                "ENCODER": theirs["encoder"], "DROPOUT": float(theirs["dropout_rate"]),
                "LOGIT_SCALE": float(theirs["logit_scale"])}

    def settings(self):
        return {**super().settings(), "DATASET.TEMPLATES": [self.theirs.get("template", "a photo of a {}.")]}

    def towers(self, trainer):
        """(name of the masks, prefix of the tensors, {layer: paths}) of each tower."""
        model = trainer.model
        return [("text", "transformer", model.text_adapter), ("visual", "visual.transformer", model.visual_adapter)]

    def prepare(self, trainer):
        """The rates follow the record's steps, and what is dropped comes from the record's names."""
        trainer.planned_steps = self.meta["steps"]
        trainer.optimizers = trainer.build_optimizers()
        trainer.optim, trainer.sched = trainer.optimizers[0]
        trainer.towers.text.packed, trainer.towers.text.padding = False, 0
        update = trainer.apply_gradients

        def apply_gradients(gradients):
            for tensor, gradient in zip(trainer.trainables, gradients):
                first = self.first.setdefault(id(tensor), gradient)
                self.first[id(tensor)] = torch.where(first == 0, gradient, first)
            update(gradients)

        trainer.apply_gradients = apply_gradients
        for tower, _, adapters in self.towers(trainer):
            for layer, paths in adapters.items():
                def dropped(paths, x, part, name=f"{tower}.{layer}"):
                    return x * self.mask(trainer, f"{name}.{part}", x)

                paths.dropped = types.MethodType(dropped, paths)

    def mask(self, trainer, name, x):
        """The record's mask of what ours computes of a tower: x (1, N, W), the tokens of each class up to its last one,
        from the class with the fewest tokens on, or (1, classes, W), the last tokens; of images (B, T, W) or (B, 1, W),
        all tokens or the first."""
        text, rate = name.startswith("text"), float(self.theirs["dropout_rate"])
        if text:
            ends = trainer.model.tokens.argmax(dim=1).tolist()
            shape = (trainer.towers.text.context_length, len(ends), x.shape[-1])
        else:
            image = trainer.model.image_tower.visual
            shape = (len(image.positional_embedding), len(x), x.shape[-1])
        seed = zlib.crc32(f"{self.meta['case']}/dropout/{trainer.batch_idx}/{name}".encode()) & 0x7FFFFFFF
        kept = np.random.RandomState(seed).random_sample(shape) >= rate
        told = {row[0]: row[1:] for row in self.meta.get("dropout_masks", [])}
        known = told.get(f"{self.meta['case']}/dropout/{trainer.batch_idx}/{name}")
        assert known is None or known[0] == kept.sum()
        mask = torch.from_numpy(kept).to(x) / (1 - rate)  # the sequence first
        if not text:
            return mask.transpose(0, 1)[:, :x.shape[1]]
        order = sorted(range(len(ends)), key=ends.__getitem__)
        own = [mask[ends[i], i][None] if x.shape[1] == len(ends) else mask[:ends[i] + 1, i] for i in order]
        return torch.cat(own)[None]

    def final(self, name, ours, theirs):
        """Adam divides a gradient by its own size and EPS, so that what is rounding in a first gradient that is nearly
        zero becomes a part of an update: by how much follows from its size, and at most the rate. A few entries may be
        that far from the recorded ones. What they are off is given in units in which that is `tensors_within`."""
        rate, first, theirs = self.meta["lr"], self.first[id(ours)].double(), torch.from_numpy(theirs).to(ours)
        allowed = (rate * EPS * ROUNDING / (first.abs() + EPS) ** 2).clamp(max=rate)
        allowed = torch.where(first == 0, 0, allowed).clamp(min=self.tensors_within)
        assert (allowed > self.tensors_within).float().mean() < MOST, name
        return theirs + (ours - theirs).double() * (self.tensors_within / allowed), theirs

    def tensors(self, trainer):
        return {f"{prefix}.resblocks.{layer}.{self.names[part]}.w_lora_{kind}": getattr(paths, kind)[part]
                for _, prefix, adapters in self.towers(trainer) for layer, paths in adapters.items()
                for part in paths.parts for kind in "AB"}


class MMA(Blocks):
    def options(self):
        theirs = self.theirs
        return {"TEXT_CTX_INIT": theirs["TEXT_CTX_INIT"], "ADAPTER_SCALE": float(theirs["ADAPTER_SCALE"]),
                **{key: int(theirs[key]) for key in ("ADAPTER_START", "ADAPTER_END", "ADAPTER_DIM")}}

    def tensors(self, trainer):
        """The authors count blocks from 1."""
        model, found = trainer.model, {}
        for kind, modules in (("text", model.text_adapter), ("visual", model.visual_adapter)):
            for layer, adapter in modules.items():
                for ours, theirs in (("down", "down.0"), ("up", "up")):
                    for name, tensor in getattr(adapter, ours).named_parameters():
                        found[f"adapter_learner.{kind}_adapter.{int(layer) + 1}.{theirs}.{name}"] = tensor
        for layer, module in model.shared_adapter.items():
            for name, tensor in module.named_parameters():
                found[f"adapter_learner.shared_adapter.{int(layer) + 1}.0.{name}"] = tensor
        return found


CASES: dict = {"CLIPLoRA": CLIPLoRA, "MMA": MMA}
REPLAYS: dict = {}
