"""Leave dropout on while evaluating: by a module that never leaves training mode, or by a call that asks no mode."""
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting.backbone import normalize

from .healthy import Healthy, ShiftedCLIP


class AlwaysTraining(ShiftedCLIP):
    def train(self, mode=True):
        return super().train(True)


class AlwaysDropping(ShiftedCLIP):
    def encode_classes(self):
        return normalize(self.text + F.dropout(self.shift.ctx, 0.2))


@TRAINER_REGISTRY.register()
class DropsOutInEvaluation(Healthy):
    module = AlwaysTraining


@TRAINER_REGISTRY.register()
class DropsOutWithoutAsking(Healthy):
    module = AlwaysDropping
