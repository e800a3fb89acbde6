"""Say that frozen image features are enough, or need them, and do something else with them."""
import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompting.towers import normalize

from .healthy import Healthy, ShiftedCLIP


class Brightened(ShiftedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers, classnames)
        self.brightness = nn.Parameter(torch.zeros(()))

    def encode_images(self, images):
        return self.towers.encode_image(images + self.brightness)


@TRAINER_REGISTRY.register()
class LearnsItsImages(Healthy):
    module = Brightened
    frozen_images = True


class Dimmed(ShiftedCLIP):
    def encode_images(self, images):
        spread = images.flatten(1).std(dim=1)
        return self.towers.encode_image(images / (1 + spread.view(-1, *[1] * (images.dim() - 1))))


@TRAINER_REGISTRY.register()
class LooksAtItsPictures(Healthy):
    module = Dimmed
    frozen_images = True


class OwnPass(ShiftedCLIP):
    def encode_images(self, images):
        image = self.towers.image
        return image.encode(image.embed(images))


@TRAINER_REGISTRY.register()
class EncodesItsImagesItself(Healthy):
    """Is stopped in its first step, where it is given features."""

    module = OwnPass
    frozen_images = True


class Near(Healthy):
    """Class features are kept near the frozen features of their images."""

    frozen_features = True

    def compute_loss(self, batch):
        loss, logits = super().compute_loss(batch)
        return loss + self.distance(batch), logits

    def distance(self, batch):
        texts = normalize(self.model.class_features())[batch["label"]]
        return (texts - normalize(batch["frozen"])).square().mean()


@TRAINER_REGISTRY.register()
class ScalesFrozenFeaturesInPlace(Near):
    def distance(self, batch):
        batch["frozen"].div_(batch["frozen"].norm(dim=-1, keepdim=True))
        return super().distance(batch)


@TRAINER_REGISTRY.register()
class HasNoUseForFrozenFeatures(Near):
    def distance(self, batch):
        return 0 * super().distance(batch)
