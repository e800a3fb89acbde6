"""Draw the start from the operating system, or run every seed as if it were the first."""
import torch

from dassl.engine import TRAINER_REGISTRY

from .healthy import Healthy


@TRAINER_REGISTRY.register()
class IgnoresTheSeed(Healthy):
    def build_model(self, towers, classnames):
        model = super().build_model(towers, classnames)
        generator = torch.Generator()
        generator.seed()
        # little against what an epoch changes: where a run starts must not decide whether its loss falls
        torch.nn.init.normal_(model.shift.ctx, std=0.002, generator=generator)
        return model


@TRAINER_REGISTRY.register()
class KnowsOneSeed(Healthy):
    def __init__(self, cfg, **context):
        cfg.defrost()
        cfg.SEED = 1
        cfg.freeze()
        torch.manual_seed(1)
        super().__init__(cfg, **context)
