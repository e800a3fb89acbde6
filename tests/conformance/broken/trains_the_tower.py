"""Lets the last layer norm of the CLIP that all runs share learn along."""
from dassl.engine import TRAINER_REGISTRY

from .healthy import Healthy


@TRAINER_REGISTRY.register()
class TrainsTheTower(Healthy):
    def build_model(self, towers, classnames):
        model = super().build_model(towers, classnames)
        model.norm = towers.model.visual.ln_post.requires_grad_(True)
        return model
