"""Puts the whole CLIP into its checkpoints."""
from dassl.engine import TRAINER_REGISTRY

from .healthy import Healthy


@TRAINER_REGISTRY.register()
class SavesTheCLIP(Healthy):
    def extra_state(self):
        return {**super().extra_state(), "clip": self.towers.model.state_dict()}
