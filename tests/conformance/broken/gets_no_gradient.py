"""Trains a tensor that its loss does not read. The run stops by itself and names it."""
from dassl.engine import TRAINER_REGISTRY
from prompting.model import Prompt

from .healthy import Healthy, ShiftedCLIP


class WithUnusedPrompt(ShiftedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers, classnames)
        self.unused = Prompt.random(towers.embed_dim)


@TRAINER_REGISTRY.register()
class GetsNoGradient(Healthy):
    module = WithUnusedPrompt
