"""Say that a step makes the same operations for each batch, and let it depend on something else."""
from dassl.engine import TRAINER_REGISTRY

from .healthy import Healthy


@TRAINER_REGISTRY.register()
class CountsItsBatches(Healthy):
    static_step = True

    def compute_loss(self, batch):
        loss, logits = super().compute_loss(batch)
        return loss * (1 + self.batch_idx), logits


@TRAINER_REGISTRY.register()
class CountsItsEpochs(Healthy):
    static_step = True

    def compute_loss(self, batch):
        loss, logits = super().compute_loss(batch)
        return loss * (1 + self.epoch), logits


@TRAINER_REGISTRY.register()
class ReadsItsLoss(Healthy):
    static_step = True

    def compute_loss(self, batch):
        loss, logits = super().compute_loss(batch)
        return loss * min(1, loss.item()), logits
