"""Put the whole CLIP into their checkpoints, as it is or rounded."""
from dassl.engine import TRAINER_REGISTRY

from .healthy import Healthy


@TRAINER_REGISTRY.register()
class SavesTheCLIP(Healthy):
    def extra_state(self):
        return {**super().extra_state(), "clip": self.towers.model.state_dict()}


@TRAINER_REGISTRY.register()
class SavesTheCLIPInHalf(Healthy):
    def extra_state(self):
        clip = {name: tensor.half() for name, tensor in self.towers.model.visual.state_dict().items()}
        return {**super().extra_state(), "clip": clip}
