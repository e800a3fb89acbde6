"""Full fine-tuning of the image tower; evaluated is the running average of its weights.

Learned: every tensor of the image tower. The class features are those of the CLIP as it is. After each update the
average moves by 1 - DECAY towards what is trained; it starts where the training does.
"""
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.model import FrozenCLIP
from prompting.templates import template_of
from training import PromptTrainer


@TRAINER_REGISTRY.register()
class FineTunedAverage(PromptTrainer):
    trains_towers = True
    extra_state_share = 1  # the average is as large as the image tower

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.FINETUNEDAVERAGE = CN()
        cfg.TRAINER.FINETUNEDAVERAGE.DECAY = 0.8  # of the average, per update
        cfg.TRAINER.FINETUNEDAVERAGE.PREC = "auto"  # fp32, amp, bf16 or auto

    def build_model(self, towers, classnames):
        towers.model.visual.requires_grad_(True)
        self.average = {}
        return FrozenCLIP(towers, classnames, self.frozen_templates(template_of(self.cfg.DATASET.NAME)))

    def training_step(self, batch):
        trained = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.average:
            self.average = {name: tensor.clone() for name, tensor in trained.items()}
        summary = super().training_step(batch)
        for name, tensor in trained.items():  # which the update has changed in place
            self.average[name].lerp_(tensor, 1 - self.node.DECAY)
        return summary

    def evaluated_weights(self):
        return self.average or None

    def extra_state(self):
        return {"average": self.average}

    def load_extra_state(self, state):
        self.average = {name: tensor.to(self.device, copy=True) for name, tensor in state["average"].items()}
