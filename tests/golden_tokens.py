"""Replaying the records of the methods with tokens of their own in the towers: MMRL and RPO."""
import json

import torch
from golden_case import Case

import tiny_clip
from prompting.towers import normalize


class MMRL(Case):
    """Logits are 100 times cosines. The record has three kinds of them, before and after the training: those of trained
    classes, which every replay compares, those of new ones, and those of the representation tokens."""

    tensors_within, losses_within, logits_within = 1e-6, 2e-5, 2e-4

    def options(self):
        options = {key: json.loads(self.theirs[key]) for key in ("N_REP_TOKENS", "REP_LAYERS", "REP_DIM")}
        return {**options, "ALPHA": float(self.theirs["ALPHA"]), "REG_WEIGHT": float(self.theirs["REG_WEIGHT"])}

    def prepare(self, trainer):
        self.trainer, self.before = trainer, None

    def tensors(self, trainer):
        model, learner = trainer.model, "representation_learner.compound_rep_tokens"
        found = {learner: model.representation.ctx, "image_encoder.proj_rep": model.projection}
        for tower, layers in (("v", model.to_image), ("t", model.to_text)):
            for j, layer in enumerate(layers):
                found[f"{learner}_r2{tower}proj.{j}.weight"] = layer.weight
                found[f"{learner}_r2{tower}proj.{j}.bias"] = layer.bias
        return found

    def batch(self, batch):
        """The first batch comes when the start of the record is in place."""
        self.before = self.before or self.other_logits()
        return batch

    @torch.no_grad()
    def other_logits(self):
        trainer, model = self.trainer, self.trainer.model
        images = tiny_clip.batch("eval", 0, 16, self.meta["classes"])["img"].to(trainer.device)
        model.fused = False
        new = trainer.logits_of({"img": images})
        model.fused = True
        return {"new": new, "rep": model.both_logits(images)[1]}

    def extras(self, trainer):
        for when, logits in (("before", self.before), ("after", self.other_logits())):
            for kind, ours in logits.items():
                yield f"{kind} logits {when} training", ours, self.record[f"extra/logits_{when}_{kind}"]
        for name, ours in (("frozen", trainer.frozen_text_features), ("final", trainer.model.encode_classes())):
            yield f"{name} text features", normalize(ours), self.record[f"extra/{name}_text_features"], 5e-6


class RPO(Case):
    def options(self):
        return {"K": int(self.theirs["K"])}

    def settings(self):
        template = self.theirs["PROMPT"].replace("_", "{}")
        return {**super().settings(), "DATASET.TEMPLATES": [template]}

    def tensors(self, trainer):
        return {"prompt_learner.text_prompt": trainer.model.text_prompt,
                "prompt_learner.img_prompt": trainer.model.image_prompt}

    def extras(self, trainer):
        yield "lengths of prompts", trainer.model.class_prompts.eot + 1, self.record["extra/prompt_lengths"]


CASES: dict = {"MMRL": MMRL, "RPO": RPO}
REPLAYS: dict = {}
