"""The rules of the other checks, each broken by one trainer."""
import torch
from torch import nn
from torch.utils.data import get_worker_info

from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper
from dassl.engine import TRAINER_REGISTRY
from prompting.backbone import normalize

from .healthy import Healthy, ShiftedCLIP


@TRAINER_REGISTRY.register()
class ClimbsItsLoss(Healthy):
    def apply_gradients(self, gradients, tensors=None, optimizer=None):
        super().apply_gradients([-gradient for gradient in gradients], tensors, optimizer)


@TRAINER_REGISTRY.register()
class ForgetsItsCalibration(Healthy):
    def after_train(self):
        self.model.text = normalize(self.model.text + 0.1 * self.average)
        super().after_train()


class OwnVectors(ShiftedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers, classnames)
        self.shift.ctx = nn.Parameter(torch.randn(len(classnames), towers.embed_dim) * 0.02)


@TRAINER_REGISTRY.register()
class DoesNotSayItIsClassBound(Healthy):
    module = OwnVectors


class Centred(ShiftedCLIP):
    def encode_images(self, images):
        features = super().encode_images(images)
        return features - 0.1 * features.mean(dim=0)


@TRAINER_REGISTRY.register()
class LooksAtTheWholeBatch(Healthy):
    module = Centred


@TRAINER_REGISTRY.register()
class ForgetsItsMomentum(Healthy):
    def build_model(self, towers, classnames):
        self.velocity = 0
        return super().build_model(towers, classnames)

    def training_step(self, batch):
        loss, _ = self.compute_loss(batch)
        gradient, = self.gradients(loss, self.trainables)
        self.velocity = 0.9 * self.velocity + gradient
        self.apply_gradients([self.velocity])
        return {"loss": loss.item()}


class NumberedByWorker(DatasetWrapper):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        worker = get_worker_info()
        return item if worker is None else {**item, "img": item["img"] + 0.01 * (worker.id + 1)}


@TRAINER_REGISTRY.register()
class FeelsItsWorkers(Healthy):
    def build_data_loader(self):
        super().build_data_loader()
        self.train_loader_x = DataManager(self.cfg, dataset_wrapper=NumberedByWorker).train_loader_x


@TRAINER_REGISTRY.register()
class SqueezesItsBatch(Healthy):
    def compute_loss(self, batch):
        logits = self.model(batch["img"]).squeeze(0)
        return nn.functional.cross_entropy(logits, batch["label"]), logits


@TRAINER_REGISTRY.register()
class RoundsItsPrompt(Healthy):
    def apply_gradients(self, gradients, tensors=None, optimizer=None):
        super().apply_gradients(gradients, tensors, optimizer)
        if self.precision.name == "amp":
            self.model.shift.ctx.data = self.model.shift.ctx.data.bfloat16()
