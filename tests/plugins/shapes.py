"""A dataset, a sampler and a method of one's own."""
import os

from yacs.config import CfgNode as CN

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.samplers import SAMPLER_REGISTRY, RandomSampler
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import listdir_nohidden
from prompting.model import Prompt, PromptedCLIP
from training import PromptTrainer


@DATASET_REGISTRY.register()
class Shapes(DatasetBase):
    dataset_dir = "caltech-101/101_ObjectCategories"

    def __init__(self, cfg):
        folder = os.path.join(cfg.DATASET.ROOT, self.dataset_dir)
        train, test = ([Datum(os.path.join(folder, name, file), label, 0, name)
                        for label, name in enumerate(listdir_nohidden(folder))
                        for file in listdir_nohidden(os.path.join(folder, name))[part]]
                       for part in (slice(0, 2), slice(2, 4)))
        super().__init__(train, test=test)


@SAMPLER_REGISTRY.register()
class BackwardSampler(RandomSampler):
    def order(self, rng):
        return list(range(len(self.data_source)))[::-1]


class Shifted(PromptedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers)
        self.text = towers.frozen_text(classnames, ["{}"])
        self.shift = Prompt.random(towers.embed_dim)

    def encode_classes(self):
        return self.text + self.shift.ctx


@TRAINER_REGISTRY.register()
class Shift(PromptTrainer):
    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.SHIFT = CN({"PREC": "auto", "STRENGTH": 1.0})

    def build_model(self, towers, classnames):
        return Shifted(towers, classnames)

    def training_step(self, batch):
        self.files = [*getattr(self, "files", []), *batch["impath"]]
        if self.epoch == 0 and len(self.files) == 12:
            print("order:", *(os.path.basename(os.path.dirname(file)) for file in self.files))
        return super().training_step(batch)
