"""A cache of labelled images beside zero-shot CLIP (Tip-Adapter)."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompting.errors import PromptingError
from prompting.model import FrozenCLIP
from prompting.precision import all_finite
from prompting.towers import Towers, normalize

SCALE = 100.0  # of the zero-shot logits, whatever the CLIP's own logit scale is


class CacheCLIP(FrozenCLIP):
    """Logits 100 f W + alpha exp(-beta (1 - f K)) V for the normalised image feature f and the frozen class features W.

    Args:
        towers, classnames, templates: as for zero-shot CLIP.
        labels: of the N images in the cache; as one-hot rows they are the values V, (N, n_cls).
        beta, alpha: sharpness and weight of the cache.
    """

    values: Tensor

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str], labels: Sequence[int],
                 beta: float, alpha: float) -> None:
        super().__init__(towers, classnames, templates)
        self.adapter = nn.Linear(towers.embed_dim, len(labels), bias=False)  # its rows are the keys K, (N, E)
        self.register_buffer("values", F.one_hot(torch.tensor(labels), len(classnames)).float())
        self.beta, self.alpha = beta, alpha

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        zero_shot, affinity = self.similarities(image_features, class_features)
        return zero_shot + self.alpha * self.cache_logits(affinity, self.beta)

    def similarities(self, image_features: Tensor, class_features: Tensor) -> tuple[Tensor, Tensor]:
        """Image features (B, E), of any length -> (zero-shot logits (B, n_cls), cosines with the keys (B, N))."""
        image_features = normalize(image_features)
        return SCALE * image_features @ class_features.T, self.adapter(image_features).float()

    def cache_logits(self, affinity: Tensor, beta: float) -> Tensor:
        """Cosines with the keys (B, N) -> the sum of the labels of similar images, (B, n_cls)."""
        return (beta * (affinity - 1)).exp() @ self.values

    @torch.no_grad()
    def search(self, image_features: Tensor, labels: Tensor, scales: Sequence[float], steps: Sequence[int]) -> float:
        """Set beta and alpha to the best point of a grid; of several best points, to the first.

        Args:
            image_features (B, E), labels (B,): of the images on which the accuracy is measured.
            scales, steps: for beta and for alpha; i (scale - 0.1) / steps + 0.1 for i = 0, 1, ..., steps - 1.
        Returns:
            the accuracy, 0 to 1.
        Raises:
            PromptingError: the zero-shot logits or the cosines with the keys are not finite. A beta whose exponential
                overflows is left out.
        """
        best = 0.0
        zero_shot, affinity = self.similarities(image_features, self.encode_classes())
        if not all_finite([zero_shot, affinity]):
            raise PromptingError("the search for beta and alpha has numbers that are not finite: the class features or "
                                 "the keys of the cache are damaged; use PREC bf16 or fp32, or train again")
        betas, alphas = ([0.1 + i * (scale - 0.1) / n for i in range(n)] for scale, n in zip(scales, steps))
        for beta in betas:
            cache = self.cache_logits(affinity, beta)
            if not all_finite([max(alphas) * cache]):
                continue
            for alpha in alphas:
                correct = ((zero_shot + alpha * cache).argmax(dim=1) == labels).sum().item()
                if correct > best:
                    best, self.beta, self.alpha = correct, beta, alpha
        return best / len(labels)
