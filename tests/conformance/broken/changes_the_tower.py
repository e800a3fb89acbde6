"""Change the CLIP that all runs share: let a part of it learn without saying so, its values, its modules."""
import copy

from dassl.engine import TRAINER_REGISTRY

from .healthy import Healthy


@TRAINER_REGISTRY.register()
class TrainsTheTower(Healthy):
    """Is refused when it is built: it does not say `trains_towers`."""

    def build_model(self, towers, classnames):
        model = super().build_model(towers, classnames)
        model.norm = towers.model.visual.ln_post.requires_grad_(True)
        return model


@TRAINER_REGISTRY.register()
class ScalesTheTower(Healthy):
    def build_model(self, towers, classnames):
        towers.model.visual.ln_post.weight.data.mul_(1.01)
        return super().build_model(towers, classnames)


@TRAINER_REGISTRY.register()
class RewiresTheTower(Healthy):
    """Once it is built; before, it would be refused."""

    def before_train(self):
        super().before_train()
        mlp = self.towers.model.visual.transformer.resblocks[-1].mlp
        mlp.c_fc = copy.deepcopy(mlp.c_fc)


@TRAINER_REGISTRY.register()
class ListensInTheTower(Healthy):
    """Once it is built, as before."""

    def before_train(self):
        super().before_train()
        self.towers.model.visual.ln_post.register_forward_hook(lambda module, inputs, output: None)
