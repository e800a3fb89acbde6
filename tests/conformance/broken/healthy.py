"""A trainer that keeps every rule, with one of everything that others get wrong: a random start, dropout while
training, state besides what is trained."""
import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompting.backbone import normalize
from prompting.model import Prompt, PromptedCLIP
from training import PromptTrainer


class ShiftedCLIP(PromptedCLIP):
    """One learned vector moves the text features of all classes."""

    def __init__(self, towers, classnames):
        super().__init__(towers)
        self.text = towers.frozen_text(classnames, ["a photo of a {}."])
        self.shift = Prompt.random(towers.embed_dim)
        self.dropout = nn.Dropout(0.2)

    def encode_classes(self):
        return normalize(self.text + self.dropout(self.shift.ctx))


@TRAINER_REGISTRY.register()
class Healthy(PromptTrainer):
    frozen_images = True
    module = ShiftedCLIP

    def build_model(self, towers, classnames):
        self.average = torch.zeros(towers.embed_dim)
        return self.module(towers, classnames)

    def after_epoch(self):
        self.average = (self.average + self.model.shift.ctx.detach()) / 2
        super().after_epoch()

    def extra_state(self):
        return {"average": self.average}

    def load_extra_state(self, state):
        self.average = state["average"]
