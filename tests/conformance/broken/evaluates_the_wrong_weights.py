"""Evaluate others than the trained tensors, without saying so or without keeping them."""
import torch

from dassl.engine import TRAINER_REGISTRY

from .healthy import Healthy


@TRAINER_REGISTRY.register()
class LeavesItsAverageIn(Healthy):
    """Puts its average in the place of what it trains, for the test and for ever."""

    @torch.no_grad()
    def test(self, split=None):
        self.model.shift.ctx.copy_(self.average)
        return super().test(split)


@TRAINER_REGISTRY.register()
class EvaluatesWhatItDoesNotSay(Healthy):
    """Puts its average in the place of what it trains for the length of the test."""

    @torch.no_grad()
    def test(self, split=None):
        kept = self.model.shift.ctx.clone()
        self.model.shift.ctx.copy_(self.average)
        try:
            return super().test(split)
        finally:
            self.model.shift.ctx.copy_(kept)


@TRAINER_REGISTRY.register()
class KeepsNoCopy(Healthy):
    """Evaluates the mean of what is trained and of what it started as, of which it has no copy."""

    def build_model(self, towers, classnames):
        model = super().build_model(towers, classnames)
        self.start = model.shift.ctx
        return model

    def evaluated_weights(self):
        return {"shift.ctx": (self.start + self.model.shift.ctx) / 2}


@TRAINER_REGISTRY.register()
class ForgetsItsAverage(Healthy):
    """Evaluates the mean of what the last epoch began and ended with, which no checkpoint keeps."""

    def build_model(self, towers, classnames):
        model = super().build_model(towers, classnames)
        self.mean = model.shift.ctx.detach().clone()
        return model

    def before_epoch(self):
        self.began = self.model.shift.ctx.detach().clone()
        super().before_epoch()

    def after_epoch(self):
        self.mean = (self.began + self.model.shift.ctx.detach()) / 2
        super().after_epoch()

    def evaluated_weights(self):
        return {"shift.ctx": self.mean}
