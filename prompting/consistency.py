"""How far prompted features have moved from the frozen ones: the regularisers that several methods share."""
import torch

from prompting.backbone import normalize
from prompting.templates import IMAGENET_FIRST_60, fill
from prompting.text import readable


def cosine_distance(features, frozen):
    """1 - the mean cosine of matching rows; both (N, E), of any length.

    KgCoOp, TCP and CoPrompt hold prompted features near the frozen ones by it (for features of length 1 it is half the
    squared distance)."""
    return 1 - (normalize(features) * normalize(frozen)).sum(dim=-1).mean()


def l1_distance(features, frozen):
    """Mean absolute difference over all entries of the features scaled to length 1; both (N, E).

    PromptSRC and ProMetaR hold prompted features near the frozen ones by it."""
    return (normalize(features) - normalize(frozen)).abs().mean()


@torch.no_grad()
def diverse_text_features(towers, classnames, templates=IMAGENET_FIRST_60):
    """Frozen text features (n_cls, E) as PromptSRC and ProMetaR take them: the mean over templates, theirs are 60, of
    features that are not normalised (`Towers.frozen_text` normalises each, as CLIP does)."""
    texts = [fill(template, readable(name)) for template in templates for name in classnames]
    return towers.text.encode_texts(texts).view(len(templates), len(classnames), -1).mean(dim=0)
