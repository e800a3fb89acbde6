"""A method that belongs to its classes, one whose process ends in the middle of a run, one made of its images."""
import os

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompting.model import PromptedCLIP
from training import PromptTrainer


class Weights(PromptedCLIP):
    """One learned vector per class."""

    def __init__(self, towers, n_cls):
        super().__init__(towers)
        self.weights = nn.Parameter(torch.randn(n_cls, towers.embed_dim))

    def encode_classes(self):
        return self.weights


@TRAINER_REGISTRY.register()
class LinearOnly(PromptTrainer):
    class_bound = True  # type: ignore[assignment]  # as method files of earlier releases say it

    def build_model(self, towers, classnames):
        return Weights(towers, len(classnames))


@TRAINER_REGISTRY.register()
class Dies(LinearOnly):
    def training_step(self, batch):
        os._exit(7)


@TRAINER_REGISTRY.register()
class MadeOfImages(PromptTrainer):
    """Each class's first training image."""

    trains = False
    class_bound = True  # type: ignore[assignment]  # as method files of earlier releases say it

    def build_model(self, towers, classnames):
        firsts = {item.label: self.dm.train_loader_x.dataset.transform for item in self.dm.dataset.train_x}
        assert len(firsts) == len(classnames)
        model = Weights(towers, len(classnames))
        model.weights.requires_grad_(False)
        return model
