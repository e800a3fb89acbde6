"""Say that tensors are trained which stay as they are, or change what they do not train."""
import torch

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from prompting.backbone import normalize
from prompting.model import Prompt

from .healthy import Healthy, ShiftedCLIP


class ShiftedTwice(ShiftedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers, classnames)
        self.second = Prompt(torch.full((towers.embed_dim,), 0.001))

    def encode_classes(self):
        return normalize(super().encode_classes() + self.second.ctx)


@TRAINER_REGISTRY.register()
class OptimizesAPart(Healthy):
    module = ShiftedTwice

    def build_optimizers(self):
        optimizer = build_optimizer([self.model.shift.ctx], self.cfg.OPTIM)
        return [(optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))]


@TRAINER_REGISTRY.register()
class PutsItBack(Healthy):
    module = ShiftedTwice

    def training_step(self, batch):
        kept = self.model.second.ctx.detach().clone()
        summary = super().training_step(batch)
        self.model.second.ctx.data.copy_(kept)
        return summary


@TRAINER_REGISTRY.register()
class DecaysWhatIsFrozen(Healthy):
    """The text tower, of which the class features were made before."""

    trains_towers = True

    def build_model(self, towers, classnames):
        model = super().build_model(towers, classnames)
        towers.model.visual.ln_post.requires_grad_(True)
        return model

    def training_step(self, batch):
        with torch.no_grad():
            self.model.clip.ln_final.weight.mul_(0.999)
        return super().training_step(batch)
