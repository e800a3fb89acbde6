"""Methods that learn at test time, or evaluate other weights than they train, as a stranger would write them."""
import torch
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompting.model import PromptedCLIP
from training import PromptTrainer


class Shifted(PromptedCLIP):
    """Zero-shot CLIP with a learned vector that is added to all class features, and a buffer for what was seen."""

    mean: Tensor

    def __init__(self, towers, classnames):
        super().__init__(towers)
        self.start = towers.encode_classnames(classnames, ["a photo of a {}."])
        self.shift = nn.Parameter(torch.zeros(towers.embed_dim))
        self.register_buffer("mean", torch.zeros(towers.embed_dim))

    def encode_classes(self):
        return self.start + self.shift

    def encode_images(self, images):
        return self.towers.encode_image(images) - 0.5 * self.mean


class OnShifted(PromptTrainer):
    def build_model(self, towers, classnames):
        return Shifted(towers, classnames)


@TRAINER_REGISTRY.register()
class Entropy(OnShifted):
    """Two steps down the entropy of a noisy copy of each image's logits."""

    trains = False
    learns_from_images = False
    adapts = True
    factor = 1.0  # of the loss; a large one overflows

    def predict(self, batch):
        for _ in range(2):
            logits = self.model(batch["img"])
            logits = logits + 0.1 * torch.randn(logits.shape).to(logits)
            entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
            self.apply_gradients(self.gradients(entropy * self.factor, self.trainables))
            self.model.mean += 0.001
        self.model.train()
        with torch.no_grad():
            return self.model_inference(batch["img"])

    def build_test_optimizer(self):
        return torch.optim.SGD(self.trainables, lr=0.03 / self.factor, momentum=0.9)


@TRAINER_REGISTRY.register()
class Continual(Entropy):
    """The same, which goes on from image to image."""

    stateful = True


@TRAINER_REGISTRY.register()
class MeanOfStream(OnShifted):
    """Features are seen from the mean of those of the images so far, without a gradient."""

    trains = False
    learns_from_images = False
    stateful = True
    features: tuple = ()  # of the images so far

    def predict(self, batch):
        self.features = (*self.features, self.towers.encode_image(batch["img"])[0])
        self.model.mean = torch.stack(self.features).mean(0)  # another tensor in the buffer's place
        return self.model_inference(batch["img"])

    def extra_state(self):
        return {"features": list(self.features)}

    def load_extra_state(self, state):
        self.features = tuple(state.get("features", ()))


@TRAINER_REGISTRY.register()
class MeanOfBatch(OnShifted):
    """Features are seen from the mean of their batch."""

    trains = False
    learns_from_images = False
    transductive = True

    def predict(self, batch):
        features = self.towers.encode_image(batch["img"])
        return self.towers.cosine_logits(features - 0.5 * features.mean(0), self.model.encode_classes()).float()


@TRAINER_REGISTRY.register()
class Averaged(OnShifted):
    """Trains the vector, and evaluates its running average."""

    average = None

    def training_step(self, batch):
        summary = super().training_step(batch)
        now = self.trained_state()
        before = self.average or {name: torch.zeros_like(tensor) for name, tensor in now.items()}
        self.average = {name: 0.8 * before[name] + 0.2 * tensor for name, tensor in now.items()}
        return summary

    def evaluated_weights(self):
        return self.average

    def extra_state(self):
        return {"average": self.average} if self.average else {}

    def load_extra_state(self, state):
        self.average = state.get("average")
