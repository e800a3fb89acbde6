"""Habits of public trainer files: a dataset wrapper and a `test` of one's own, a trainer with nothing to load."""
import torch
from torch import nn

from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from prompting.model import Prompt, PromptedCLIP
from training import PromptTrainer


class Listed(DatasetWrapper):
    def __getitem__(self, idx):
        item = self.data_source[idx]
        assert isinstance(idx, int)
        return {**super().__getitem__(idx), "name": item.classname}


@TRAINER_REGISTRY.register()
class OwnTest(TrainerX):
    def build_data_loader(self):
        dm = DataManager(self.cfg, dataset_wrapper=Listed)
        self.train_loader_x, self.val_loader, self.test_loader = dm.train_loader_x, dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname, self.dm = dm.num_classes, dm.lab2cname, dm

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, self.num_classes)).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("net", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = nn.functional.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model(image), label)
        return next(iter(self.evaluator.evaluate().values()))


@TRAINER_REGISTRY.register()
class Guess(TrainerX):
    """Nothing to train or to load."""

    def build_model(self):
        pass

    def model_inference(self, image):
        return torch.eye(self.num_classes)[:1].expand(len(image), -1)


class Moved(PromptedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers)
        self.text = towers.frozen_text(classnames, ["{}"])
        self.move = Prompt(torch.zeros(towers.embed_dim))

    def encode_classes(self):
        return self.text + self.move.ctx


@TRAINER_REGISTRY.register()
class Undeclared(PromptTrainer):
    def build_model(self, towers, classnames):
        assert self.node.get("FOO", 0) in (0, 7)
        return Moved(towers, classnames)


@TRAINER_REGISTRY.register()
class OwnNames(OwnTest):
    """Names that the engine uses for its parts, for things of its own."""

    checkpointer = "mine"

    def build_model(self):
        super().build_model()
        self.progress = self.budget = self.stop = 0

    def evaluation(self):
        return SimpleTrainer.test(self)

    def test(self, split=None):
        return self.evaluation()
