"""Zero-shot and probe accuracy of a model on the classes of Shapes."""

import math

import clip
import torch
import torch.nn.functional as F
from torch import nn

from dassl.metrics import require_finite
from datasets import shapes as dataset
from tools.pretraining.captions import REGISTERS
from tools.pretraining.model import image_features, text_features


class Evaluation:
    """Measures a model on the dataset's classes. pictures: domain -> (images, labels)."""

    def __init__(self, vocab, train, pictures, device):
        self.vocab, self.device = vocab, device
        self.train, self.pictures = train, pictures
        self.n_base = math.ceil(len(dataset.CLASSNAMES) / 2)

    def tokens(self, lines):
        return torch.searchsorted(self.vocab, clip.tokenize(lines)).to(self.device)

    def class_features(self, model, template="a photo of a {}."):
        with torch.no_grad():
            return text_features(model, self.tokens([template.format(c) for c in dataset.CLASSNAMES]))

    def accuracy(self, features, labels, text, low, high):
        """Per cent right among the classes low..high-1."""
        keep = (labels >= low) & (labels < high)
        logits = features[keep] @ text[low:high].T
        require_finite(logits)
        return 100 * (logits.argmax(1) + low == labels[keep]).float().mean().item()

    def __call__(self, model):
        """Zero-shot accuracy on each domain, and on photos with the prompts of each register."""
        n, half = len(dataset.CLASSNAMES), self.n_base
        text = self.class_features(model)
        result = {}
        for domain, (images, labels) in self.pictures.items():
            features, labels = image_features(model, images, self.device), torch.as_tensor(labels, device=self.device)
            result[f"zero-shot {domain} all"] = self.accuracy(features, labels, text, 0, n)
            result[f"zero-shot {domain} base"] = self.accuracy(features, labels, text, 0, half)
            result[f"zero-shot {domain} new"] = self.accuracy(features, labels, text, half, n)
            if domain == "photo":
                photo = features, labels
        for name, register in REGISTERS.items():
            if name != "ordinary":
                text = self.class_features(model, register.templates[0])
                result[f"{name} photo base"] = self.accuracy(*photo, text, 0, half)
                result[f"{name} photo new"] = self.accuracy(*photo, text, half, n)
        return result

    def probes(self, model):
        """Accuracy of a probe on the features of 16 photos a class, on each domain."""
        images, labels = self.train
        features, labels = image_features(model, images, self.device), torch.as_tensor(labels, device=self.device)
        few = torch.cat([torch.nonzero(labels == y).flatten()[:16] for y in range(len(dataset.CLASSNAMES))])
        readout = fit_probe(features[few], labels[few])
        result = {}
        for domain, (images, labels) in self.pictures.items():
            right = readout(image_features(model, images, self.device)) == torch.as_tensor(labels, device=self.device)
            result[f"probe {domain}"] = 100 * right.float().mean().item()
        return result


def fit_probe(features, labels, decay=1e-3):
    """Logistic regression on frozen features: a function from features (B, dim) to labels (B,)."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    features = (features - mean) / std
    readout = nn.Linear(features.shape[1], int(labels.max()) + 1).to(features.device)
    nn.init.zeros_(readout.weight)
    optimizer = torch.optim.LBFGS(readout.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(readout(features), labels) + decay * readout.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)

    def predict(tested):
        with torch.no_grad():
            logits = readout((tested - mean) / std)
        require_finite(logits)
        return logits.argmax(1)

    return predict
