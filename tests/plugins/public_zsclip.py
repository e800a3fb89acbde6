"""Zero-shot CLIP as the public CoOp repository has it, meant for --eval-only, and its kin that may or may not learn."""
import torch
from clip import clip
from torch import nn

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_optimizer

from .coop_style import load_clip_to_cpu


class PublicStyle(TrainerX):
    def build_model(self):
        classnames = self.dm.dataset.classnames
        clip_model = load_clip_to_cpu(self.cfg).float().to(self.device)
        prompts = torch.cat([clip.tokenize(f"a photo of a {name.replace('_', ' ')}.") for name in classnames])
        with torch.no_grad():
            features = clip_model.encode_text(prompts.to(self.device))
        self.text_features = features / features.norm(dim=-1, keepdim=True)
        self.clip_model = clip_model

    def model_inference(self, image):
        features = self.clip_model.encode_image(image)
        features = features / features.norm(dim=-1, keepdim=True)
        return self.clip_model.logit_scale.exp() * features @ self.text_features.t()


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PublicStyle):
    """Nothing is registered."""


@TRAINER_REGISTRY.register()
class RegisteredZeroshot(PublicStyle):
    """Its CLIP is registered without an optimizer, as some files do for `set_model_mode`."""

    def build_model(self):
        super().build_model()
        self.register_model("clip", self.clip_model)


@TRAINER_REGISTRY.register()
class StepLess(PublicStyle):
    """It registers something to train, and no step trains it."""

    def build_model(self):
        super().build_model()
        self.head = nn.Linear(2, 2)
        self.register_model("head", self.head, build_optimizer(self.head, self.cfg.OPTIM))


@TRAINER_REGISTRY.register()
class InDoubt(PublicStyle):
    """A step that does nothing: only its class can say so."""

    def forward_backward(self, batch):
        return {}


@TRAINER_REGISTRY.register()
class SaysSo(InDoubt):
    trains = False
