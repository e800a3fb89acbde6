"""How far prompted features have moved from the frozen ones: the regularisers that several methods share."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prompting.class_prompts import readable
from prompting.templates import IMAGENET_FIRST_60, fill
from prompting.towers import Towers, normalize


def cosine_distance(features: Tensor, frozen: Tensor) -> Tensor:
    """1 - the mean cosine of matching rows; both (N, E), of any length. The regulariser of KgCoOp, TCP and CoPrompt.

    For features of length 1 it is half the squared distance."""
    return 1 - (normalize(features) * normalize(frozen)).sum(dim=-1).mean()


def l1_distance(features: Tensor, frozen: Tensor) -> Tensor:
    """Mean absolute difference over all entries of the features scaled to length 1; both (N, E). The regulariser of
    PromptSRC and ProMetaR."""
    return (normalize(features) - normalize(frozen)).abs().mean()


@torch.no_grad()
def diverse_text_features(towers: Towers, classnames: Sequence[str],
                          templates: Sequence[str] = IMAGENET_FIRST_60) -> Tensor:
    """The frozen text features (n_cls, E) of PromptSRC and ProMetaR: the mean over many templates (theirs are 60) of
    features that are not normalised. `Towers.encode_classnames` normalises each, as CLIP does."""
    texts = [fill(template, readable(name)) for template in templates for name in classnames]
    return towers.text.encode_texts(texts).view(len(templates), len(classnames), -1).mean(dim=0)
