"""Break what is promised of test images: that none of them reaches another, and that a test changes nothing."""
import torch

from dassl.engine import TRAINER_REGISTRY

from .healthy import Healthy, ShiftedCLIP


class Adapts(Healthy):
    """One step down the entropy of the image's own prediction."""

    adapts = True

    def predict(self, batch):
        probabilities = self.model(batch["img"]).softmax(dim=1)
        entropy = -(probabilities * probabilities.log()).sum(dim=1).mean()
        self.apply_gradients(self.gradients(entropy, self.trainables))
        return self.model(batch["img"])


@TRAINER_REGISTRY.register()
class LeaksBetweenImages(Adapts):
    """Remembers the images before in an attribute, which nobody puts back, for the length of an evaluation."""

    def set_model_mode(self, mode="train", names=None):
        self.remembered = 0
        super().set_model_mode(mode, names)

    def predict(self, batch):
        logits = super().predict(batch)
        self.remembered = 0.5 * self.remembered + 0.5 * logits.detach()
        return logits + self.remembered


@TRAINER_REGISTRY.register()
class KeepsItsOwnOptimizer(Healthy):
    """Learns along the way by an optimizer that nobody makes anew, and answers before it learns: what is left of an
    evaluation shows from the second batch of the next one."""

    adapts = stateful = transductive = True

    def build_model(self, towers, classnames):
        model = super().build_model(towers, classnames)
        self.adam = torch.optim.Adam([model.shift.ctx], lr=0.01)
        return model

    def predict(self, batch):
        logits = self.model(batch["img"])
        self.adam.zero_grad()
        (-(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()).backward()
        self.adam.step()
        return logits.detach()


@TRAINER_REGISTRY.register()
class AsksForGradients(Healthy):
    """Without saying that it adapts."""

    def predict(self, batch):
        with torch.enable_grad():
            return super().predict(batch)


@TRAINER_REGISTRY.register()
class HandsOnItsGraph(Healthy):
    def logits_of(self, batch):
        return super().logits_of(batch).requires_grad_()


class CountsItsImages(ShiftedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers, classnames)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        if not self.training:
            self.seen += len(images)
        return super().forward(images)


@TRAINER_REGISTRY.register()
class CountsItsTestImages(Healthy):
    module = CountsItsImages
